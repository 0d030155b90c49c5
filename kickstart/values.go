package kickstart

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"rackstrap/inventory"
)

// values is what programs of one release understand of the configuration's values: see assets/profiles/*.syntax.yaml. An
// empty list stands for anything.
type values struct {
	Hashes     []string          `yaml:"hashes"`      // of passwords: see hashShapes
	SSHKeys    []string          `yaml:"ssh_keys"`    // types that sshd lets in
	RSABits    int               `yaml:"rsa_bits"`    // that sshd asks for at least
	Proxies    []string          `yaml:"proxies"`     // schemes of URLs
	YoungZones map[string]string `yaml:"young_zones"` // time zones that the installer does not know: what to write instead

	zones map[string]bool
}

// zonesFile lists the names of all time zones.
const zonesFile = "zones.txt"

// readZones reads the names of the time zones; none, where there is no such file.
func readZones(files fs.FS) (map[string]bool, error) {
	text, err := fs.ReadFile(files, zonesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	zones := map[string]bool{}
	for _, name := range strings.Fields(string(text)) {
		zones[name] = true
	}
	return zones, nil
}

func (v *values) prepare(zones map[string]bool) error {
	v.zones = zones
	for _, kind := range v.Hashes {
		if hashShapes[kind] == nil {
			return fmt.Errorf("values.hashes: %q is not one of %s", kind, strings.Join(slices.Sorted(maps.Keys(hashShapes)), ", "))
		}
	}
	for _, kind := range v.SSHKeys {
		if sshParts[kind] == 0 {
			return fmt.Errorf("values.ssh_keys: %q is not one of %s", kind, strings.Join(slices.Sorted(maps.Keys(sshParts)), ", "))
		}
	}
	return nil
}

// check finds a value that a program of the release would not understand. An error never holds a hash or a key.
func (v *values) check(in inventory.Install, release string) error {
	for _, c := range []struct {
		key string
		err error
	}{
		{"timezone", v.zone(in.Timezone)},
		{"root_password_hash", v.hash(in.RootPasswordHash)},
		{"proxy", v.proxy(in.Proxy)},
	} {
		if c.err != nil {
			return fmt.Errorf("%s: %s: %w", c.key, release, c.err)
		}
	}
	for i, key := range in.SSHAuthorizedKeys {
		if err := v.sshKey(key); err != nil {
			return fmt.Errorf("ssh_authorized_keys[%d]: %s: %w", i, release, err)
		}
	}
	return nil
}

func (v *values) zone(name string) error {
	if older, young := v.YoungZones[name]; young {
		return fmt.Errorf("its installer does not know the time zone %s yet: write %s", name, older)
	}
	if v.zones != nil && !v.zones[name] {
		return fmt.Errorf("there is no time zone %q", name)
	}
	return nil
}

// hashShapes are the kinds of hashes that crypt(5) describes, whole: a part of one lets nobody in.
var hashShapes = map[string]*regexp.Regexp{
	"md5":      regexp.MustCompile(`^\$1\$[^$:\n]{0,8}\$[./0-9A-Za-z]{22}$`),
	"sha256":   regexp.MustCompile(`^\$5\$(rounds=[1-9][0-9]{3,8}\$)?[^$:\n]{0,16}\$[./0-9A-Za-z]{43}$`),
	"sha512":   regexp.MustCompile(`^\$6\$(rounds=[1-9][0-9]{3,8}\$)?[^$:\n]{0,16}\$[./0-9A-Za-z]{86}$`),
	"bcrypt":   regexp.MustCompile(`^\$2[abxy]\$(0[4-9]|[12][0-9]|3[01])\$[./0-9A-Za-z]{53}$`),
	"scrypt":   regexp.MustCompile(`^\$7\$[./0-9A-Za-z]{11,97}\$[./0-9A-Za-z]{43}$`),
	"yescrypt": regexp.MustCompile(`^\$g?y\$[./0-9A-Za-z]{1,32}\$[./0-9A-Za-z]{0,86}\$[./0-9A-Za-z]{43}$`),
}

// hashKinds are the kinds by what their hashes begin with.
var hashKinds = []struct{ begin, kind string }{
	{"$1$", "md5"}, {"$5$", "sha256"}, {"$6$", "sha512"},
	{"$2a$", "bcrypt"}, {"$2b$", "bcrypt"}, {"$2x$", "bcrypt"}, {"$2y$", "bcrypt"},
	{"$7$", "scrypt"}, {"$y$", "yescrypt"}, {"$gy$", "yescrypt"},
}

func (v *values) hash(hash string) error {
	if hash == "" || len(v.Hashes) == 0 {
		return nil
	}
	for _, h := range hashKinds {
		switch {
		case !strings.HasPrefix(hash, h.begin):
		case !slices.Contains(v.Hashes, h.kind):
			return fmt.Errorf("its crypt(3) does not know %s (%s), so nobody could log in: `openssl passwd -6` makes a hash that it knows", h.kind, h.begin)
		case !hashShapes[h.kind].MatchString(hash):
			return fmt.Errorf("is not a whole hash of %s: `openssl passwd -6` makes one (the value is not shown)", h.kind)
		default:
			return nil
		}
	}
	return errors.New("its crypt(3) does not know this kind of hash: `openssl passwd -6` makes one that it knows (the value is not shown)")
}

func (v *values) proxy(text string) error {
	scheme, _, _ := strings.Cut(text, "://")
	if text == "" || len(v.Proxies) == 0 || slices.Contains(v.Proxies, scheme) {
		return nil
	}
	return fmt.Errorf("its package manager reaches a proxy by %s only, not by %s", strings.Join(v.Proxies, " or "), scheme)
}

// sshKey checks the type of a public key, and that the key is whole (RFC 4253, section 6.6).
func (v *values) sshKey(line string) error {
	if len(v.SSHKeys) == 0 {
		return nil
	}
	words := strings.Fields(line)
	if len(words) < 2 {
		return errors.New("is not a public key: a type and the key")
	}
	kind := words[0]
	if !slices.Contains(v.SSHKeys, kind) {
		return fmt.Errorf("its sshd does not take a key of the type %s, but %s", kind, strings.Join(v.SSHKeys, ", "))
	}
	blob, err := base64.StdEncoding.DecodeString(words[1])
	if err != nil {
		return errors.New("is not a whole key: it is not base64")
	}
	fields, whole := sshFields(blob)
	if !whole || len(fields) != sshParts[kind] || string(fields[0]) != kind {
		return fmt.Errorf("is not a whole key of the type %s", kind)
	}
	if kind == "ssh-rsa" { // type, exponent, modulus
		modulus := fields[len(fields)-1]
		if bits := 8 * len(strings.TrimLeft(string(modulus), "\x00")); bits < v.RSABits {
			return fmt.Errorf("its sshd takes RSA keys of %d bits at least: this one has %d", v.RSABits, bits)
		}
	}
	return nil
}

// sshParts is how many strings make a key of each type, with the type itself (RFC 4253, 5656, 8709, and OpenSSH's
// PROTOCOL.u2f).
var sshParts = map[string]int{
	"ssh-rsa": 3, "ssh-ed25519": 2, "ecdsa-sha2-nistp256": 3, "ecdsa-sha2-nistp384": 3, "ecdsa-sha2-nistp521": 3,
	"sk-ssh-ed25519@openssh.com": 3, "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}

// sshFields divides a key into its strings, each behind its length.
func sshFields(blob []byte) (fields [][]byte, whole bool) {
	for len(blob) > 0 {
		if len(blob) < 4 {
			return nil, false
		}
		n := binary.BigEndian.Uint32(blob)
		blob = blob[4:]
		if uint64(n) > uint64(len(blob)) {
			return nil, false
		}
		fields, blob = append(fields, blob[:n]), blob[n:]
	}
	return fields, true
}
