package httpboot

import (
	"errors"
	"net/http"
	"regexp"

	"github.com/labstack/echo/v4"

	"rackstrap/media"
	"rackstrap/repo"
)

// repo sends a file of a package repository, or the listing of a local one's directory. Like media they are
// public.
func (s *Server) repo(c echo.Context) error {
	s.o.Rack.SignOfInstaller(client(c))
	name, file := c.Param("name"), c.Param("*")
	if s.o.Repos == nil {
		return errNotFound
	}
	if _, local := s.o.Repos.Local(name); local {
		return s.localRepo(c, name, file)
	}
	r := c.Request()
	found, err := s.o.Repos.Open(r.Context(), repo.Request{Repo: name, Path: file, Client: client(c),
		Part: endsEarly(r.Header.Get("Range")), Head: r.Method == http.MethodHead})
	if err != nil {
		return err
	}
	defer found.Content.Close()
	return sendFile(c, fileOfRepo(found))
}

func fileOfRepo(f *repo.File) file {
	return file{content: f.Content, name: f.Name, modTime: f.ModTime, etag: f.ETag}
}

func (s *Server) localRepo(c echo.Context, name, file string) error {
	if file == "" {
		file = "."
	}
	var tree media.Tree
	found, err := again(func() (*repo.File, error) {
		local, ok := s.o.Repos.Local(name)
		if !ok {
			return nil, errNotFound
		}
		tree = local.Tree()
		return local.Open(file)
	})
	if errors.Is(err, repo.ErrDirectory) {
		listing, err := renderListing(tree, "/repo/"+name, file)
		if err != nil {
			return err
		}
		return sendListing(c, listing)
	}
	if err != nil {
		return err
	}
	defer found.Content.Close()
	return sendFile(c, fileOfRepo(found))
}

// toTheEnd is a single range up to the end of the file: bytes=100-, bytes=-100. How far any other goes depends
// on the file.
var toTheEnd = regexp.MustCompile(`^bytes=([0-9]+-|-[0-9]+)$`)

// endsEarly tells whether the ranges of a request may end before the file does.
func endsEarly(ranges string) bool { return ranges != "" && !toTheEnd.MatchString(ranges) }
