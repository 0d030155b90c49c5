package inventory

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// Disk says which disk of a machine is erased. Either Name is known beforehand, or exactly one disk of the
// machine must have the properties that the other fields tell; the zero Disk is the only disk that there is.
type Disk struct {
	Name     string // as kickstart takes it: sda, disk/by-id/…
	Identity string // serial, wwn or ""
	Value    string // of the identity; a WWN in lower case without 0x
	Order    string // smallest, largest or "": of several that fit
	AtLeast  int64  // bytes
	AtMost   int64  // bytes; 0 for no limit
	text     string
}

// ParseDisk reads a choice of a disk:
//
//	sda, /dev/disk/by-id/…    that one
//	serial:S3Z9NB0K123        the one with this serial number, as udev tells it
//	wwn:0x5000c500a1b2c3d4    the one with this World Wide Name
//	smallest, largest         by size
//	>=40G smallest            the smallest of those with at least 40 GB; also >, <, <=; a disk must fit all
//	""                        the only one
//
// K, M, G and T are decimal, as disks are sold; Ki, Mi, Gi and Ti are binary.
func ParseDisk(text string) (Disk, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Disk{}, nil
	}
	d := Disk{text: strings.Join(words, " ")}
	for _, word := range words {
		if err := d.word(word); err != nil {
			return Disk{}, fmt.Errorf("%q: %w", text, err)
		}
	}
	switch {
	case d.Name != "" && len(words) > 1:
		return Disk{}, fmt.Errorf("%q: neither one disk nor a rule: sda, serial:…, wwn:…, smallest, largest, >=40G", text)
	case d.AtMost > 0 && d.AtLeast > d.AtMost:
		return Disk{}, fmt.Errorf("%q: no disk can have such a size", text)
	}
	return d, nil
}

var errTwice = errors.New("says the same thing twice")

func (d *Disk) word(word string) error {
	key, value, _ := strings.Cut(word, ":")
	switch {
	case word == "smallest" || word == "largest":
		if d.Order != "" {
			return errTwice
		}
		d.Order = word
	case key == "serial" || key == "wwn":
		if d.Identity != "" {
			return errTwice
		}
		if key == "wwn" {
			value = strings.TrimPrefix(strings.ToLower(value), "0x")
		}
		if !diskIdentity.MatchString(value) {
			return fmt.Errorf("%q is no %s", value, key)
		}
		d.Identity, d.Value = key, value
	case strings.ContainsAny(word[:1], "<>"):
		return d.limit(word)
	default:
		name := strings.TrimPrefix(word, "/dev/")
		if !diskName.MatchString(name) || strings.Contains(name, "..") {
			return fmt.Errorf("%q is not the name of a disk", word)
		}
		for _, other := range notDisks {
			if m := other.name.FindStringSubmatch(name); m != nil {
				return fmt.Errorf("%q is %s", word, other.is(m[1:]))
			}
		}
		d.Name = name
	}
	return nil
}

// notDisks are names of block devices that nothing can be installed on, and what they are.
var notDisks = []struct {
	name *regexp.Regexp
	is   func(groups []string) string
}{
	{regexp.MustCompile(`^(disk/by-(?:id|path)/.+)-part[0-9]+$`), partitionOf},
	{regexp.MustCompile(`^((?:s|h|v|xv|das)d[a-z]+)[0-9]+$`), partitionOf},
	{regexp.MustCompile(`^((?:nvme[0-9]+n|mmcblk|nbd|md|pmem|rbd|loop|(?:cciss|ida|rd)/c[0-9]+d)[0-9]+)p[0-9]+$`), partitionOf},
	{regexp.MustCompile(`^disk/by-((?:part)?(?:uuid|label))/`), func(g []string) string {
		return "what is on a disk, and is erased with it: disk/by-id/… or disk/by-path/… names the disk"
	}},
	{regexp.MustCompile(`^(nvme[0-9]+|mmcblk[0-9]+(?:boot[0-9]+|rpmb))$`), func([]string) string { return "no disk, but a part of one that cannot be installed on" }},
	{regexp.MustCompile(`^(?:sr|scd|fd|loop|ram|zram|nbd)[0-9]+$`), func([]string) string { return "not a disk that can be installed on" }},
}

func partitionOf(groups []string) string {
	return fmt.Sprintf("a partition: the whole disk is erased, which is %s", groups[0])
}

var (
	diskName     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:+/-]{0,254}$`)
	diskIdentity = regexp.MustCompile(`^[A-Za-z0-9._:+-]{1,128}$`)
	diskSize     = regexp.MustCompile(`^([<>]=?)([0-9]{1,15})([KMGT]i?)?B?$`)
)

func (d *Disk) limit(word string) error {
	m := diskSize.FindStringSubmatch(word)
	if m == nil {
		return fmt.Errorf("%q is not a limit of size like >=40G", word)
	}
	n, err := strconv.ParseInt(m[2], 10, 64)
	if err != nil {
		return err
	}
	if m[3] != "" {
		base := int64(1000)
		if strings.HasSuffix(m[3], "i") {
			base = 1024
		}
		for range strings.IndexByte("KMGT", m[3][0]) + 1 {
			if n > math.MaxInt64/base {
				return fmt.Errorf("%q is more than any disk has", word)
			}
			n *= base
		}
	}
	field := &d.AtLeast
	if m[1][0] == '<' {
		field = &d.AtMost
	}
	switch {
	case *field != 0:
		return errTwice
	case n == 0:
		return fmt.Errorf("%q says nothing", word)
	}
	switch m[1] {
	case ">":
		n++
	case "<":
		n--
	}
	*field = n
	return nil
}

// Rule is the choice as it was written; "" for the only disk.
func (d Disk) Rule() string { return d.text }

// String is the choice for people.
func (d Disk) String() string {
	if d.text == "" {
		return "the only disk"
	}
	return d.text
}
