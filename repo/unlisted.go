package repo

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// unlistedFiles are what the clients of EL7 and EL9 ask a repository for beyond what its metadata names. Of any other
// path it is known without a look upstream that there is nothing. repomd.xml and its signature are mirror's, and keys
// that the configuration names have paths of their own.
var unlistedFiles = []string{
	".treeinfo", "treeinfo", // Anaconda's payload (21: packaging/__init__.py _getTreeInfo), dracut's anaconda-netroot.sh
	".discinfo", "media.repo", // of a medium that is copied as it is
	"images/updates.img", "images/product.img", // dracut (anaconda-netroot.sh; 34: anaconda-lib.sh)
	"LiveOS/squashfs.img", "images/install.img", // the second stage where .treeinfo names none: 21, 34
	"images/pxeboot/vmlinuz", "images/pxeboot/initrd.img",
	"repodata/repomd.xml.key", // no client's own choice, but what gpgkey means in repositories of the Open Build Service and pkgs.k8s.io
}

// keyFile are the keys that distributions put into their repositories, each under a name of its own. As there is no
// end of such names there is one to how many are looked for.
var keyFile = regexp.MustCompile(`^RPM-GPG-KEY[A-Za-z0-9._-]{0,64}$`)

// Bounds of looks upstream for keys, for one repository. Files that the metadata names do not wait for looks.
const (
	maxKeyLooks      = 4       // at once; what is more is refused
	maxKeyLooksOfOne = 2       // of those, of one client
	maxStrangerLooks = 1       // and of all addresses that are not in the list
	maxKeyFile       = 1 << 20 // bytes
	maxKeyFiles      = 256     // known at once, there or not
)

// lookable tells whether a path may be looked for upstream, and whether it is one of endlessly many.
func lookable(name string) (ok, endless bool) {
	endless = keyFile.MatchString(name)
	return endless || slices.Contains(unlistedFiles, name) || strings.HasPrefix(name, keysDir), endless
}

// load is how many downloads a client has begun that are not over.
type load struct {
	begun int
	fewer chan struct{} // closed when one is over
}

// Bounds of the downloads of packages. As a download goes on when its client leaves, so do its places.
const (
	maxStrangerBegun  = 4  // by one address that is not in the list
	maxStrangersBegun = 64 // by all of them
)

// stranger is true for addresses of no listed machine. The zero Addr is this appliance.
func (s *Service) stranger(client netip.Addr) bool {
	return client.IsValid() && !client.IsLoopback() && s.o.Listed != nil && !s.o.Listed(client)
}

// mayBegin asks for a place of the client's for one more download; wait: when to ask again. s.mu is held.
func (s *Service) mayBegin(client netip.Addr, stranger bool) (wait <-chan struct{}, ok bool) {
	if !client.IsValid() {
		return nil, true
	}
	most := s.o.MaxConns
	if stranger {
		most = min(most, maxStrangerBegun)
	}
	if l := s.loads[client]; l != nil && l.begun >= most {
		return l.fewer, false
	}
	return nil, !stranger || s.strangers < maxStrangersBegun
}

// count notes a download that begins. s.mu is held.
func (s *Service) count(f *fetch) {
	if !f.client.IsValid() {
		return
	}
	if f.stranger {
		s.strangers++
	}
	l := s.loads[f.client]
	if l == nil {
		l = &load{fewer: make(chan struct{})}
		s.loads[f.client] = l
	}
	l.begun++
}

// discount notes that it is over. s.mu is held.
func (s *Service) discount(f *fetch) {
	if !f.client.IsValid() {
		return
	}
	if f.stranger {
		s.strangers--
	}
	l := s.loads[f.client]
	close(l.fewer)
	l.fewer = make(chan struct{})
	if l.begun--; l.begun == 0 {
		delete(s.loads, f.client)
	}
}
