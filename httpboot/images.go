package httpboot

import (
	"io"

	"github.com/labstack/echo/v4"
)

// image sends an archive of container images. It holds no secret: whoever asks may have it.
func (s *Server) image(c echo.Context) error {
	if s.o.Images == nil {
		return &absent{"this appliance has no images: set cluster.images"}
	}
	a := s.o.Images().Find(c.Param("file"))
	if a == nil {
		return errNotFound
	}
	f, err := a.Region()
	if err != nil {
		return err
	}
	if mac, known := s.o.Rack.MACByIP(client(c)); known {
		defer s.delivery(c, "image", mac, "images "+a.File, a.Size)()
	}
	return sendFile(c, file{content: content{io.NewSectionReader(f, 0, a.Size), f}, name: a.File, modTime: a.ModTime, etag: `"` + a.SHA256 + `"`})
}
