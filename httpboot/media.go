package httpboot

import (
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/labstack/echo/v4"

	"rackstrap/media"
)

// media sends a file of a medium, or the listing of a directory. It asks nobody who the client is: media are
// public, and the mirrors that they may be replaced by are, too.
func (s *Server) media(c echo.Context) error {
	s.o.Rack.SignOfInstaller(client(c))
	name, file := c.Param("name"), c.Param("*")
	if file == "" {
		file = "."
	}
	found, err := again(func() (opened, error) { return s.openMedia(name, file) })
	if err != nil {
		return err
	}
	if found.content == nil {
		return sendListing(c, found.listing)
	}
	defer found.content.Close()
	if kind, ok := s.roles.of(s.o.Plan.Library(), found.tree, file); ok {
		if mac, known := s.o.Rack.MACByIP(client(c)); known {
			defer s.delivery(c, kind, mac, fmt.Sprintf("%s of %s", file, name), found.entry.Size)()
		}
	}
	return sendFile(c, fileOf(found))
}

// opened is an entry of a medium, and its content if it is a file, or its listing if it is a directory.
type opened struct {
	tree    media.Tree
	entry   media.Entry
	content media.Content
	listing []byte
}

func fileOf(o opened) file {
	return file{content: o.content, name: o.entry.Name, modTime: o.entry.ModTime, etag: o.entry.ETag()}
}

// sendListing sends the listing of a directory.
func sendListing(c echo.Context, listing []byte) error {
	c.Response().Header().Set("Cache-Control", "no-cache")
	return sendBytes(c, http.StatusOK, "text/html; charset=utf-8", listing)
}

func (s *Server) openMedia(name, file string) (o opened, err error) {
	tree, ok := s.o.Plan.Library().Tree(name)
	if !ok {
		return o, errNotFound
	}
	o.tree = tree
	if o.entry, err = tree.Lookup(file); err != nil {
		return o, err
	}
	switch {
	case o.entry.IsDir():
		o.listing, err = renderListing(tree, "/media/"+name, file)
		return o, err
	case !o.entry.Mode.IsRegular(): // a device: nothing to send
		return o, errNotFound
	}
	o.content, err = tree.OpenEntry(o.entry)
	return o, err
}

// roles tells which files of the media are the installer's kernel and initrd: their transfers are steps of a
// boot, while those of packages are not.
type roles struct{ current atomic.Pointer[roleTable] }

type roleTable struct {
	library *media.Library // that it was made of
	kinds   map[media.Tree]map[string]string
}

func (r *roles) of(library *media.Library, tree media.Tree, file string) (kind string, ok bool) {
	table := r.current.Load()
	if table == nil || table.library != library {
		table = newRoleTable(library)
		r.current.Store(table)
	}
	kind, ok = table.kinds[tree][file]
	return kind, ok
}

func newRoleTable(library *media.Library) *roleTable {
	t := &roleTable{library: library, kinds: map[media.Tree]map[string]string{}}
	for _, name := range library.Names() {
		tree, _ := library.Tree(name)
		// Where all of the Red Hat family have them; what .treeinfo says comes on top.
		kinds := map[string]string{"images/pxeboot/vmlinuz": "kernel", "images/pxeboot/initrd.img": "initrd"}
		if info, err := media.ReadTreeInfo(tree); err == nil {
			kinds[info.Kernel], kinds[info.Initrd] = "kernel", "initrd"
		}
		t.kinds[tree] = kinds
	}
	return t
}
