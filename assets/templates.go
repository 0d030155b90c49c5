package assets

import (
	"bytes"
	"embed"
	"text/template"
)

//go:embed templates/*.tmpl
var templateFiles embed.FS

// templates parse at start-up: a faulty one never reaches a machine. A missing key is an error.
var templates = template.Must(template.New("").Option("missingkey=error").ParseFS(templateFiles, "templates/*.tmpl"))

// Script is what a boot script says. All values are fit for the script languages of iPXE and GRUB: the
// inventory accepts none that are not.
type Script struct {
	Title     string // "kmaster (52:54:00:00:00:80)"
	Reason    string // why this action, for people
	Action    string // of lifecycle.Action
	Appliance string // address of the appliance
	MAC       string // with colons
	UUID      string // may be empty
	Self      string // URL or path of this script, to ask again
	Medium    string
	Kernel    string // URL (iPXE) or path (GRUB)
	Initrd    string
	Args      string // kernel command line but for initrd=
	Local     string // of inventory.LocalBoot, when the disk is booted
	GRUBEFI   string // URLs of GRUB, for the local boot method "grub"
	GRUBBIOS  string
}

// IPXE renders the script for iPXE.
func (s Script) IPXE() ([]byte, error) { return s.render("ipxe.tmpl") }

// GRUB renders the configuration file for GRUB.
func (s Script) GRUB() ([]byte, error) { return s.render("grub.tmpl") }

func (s Script) render(name string) ([]byte, error) {
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, name, s); err != nil {
		return nil, err
	}
	if out.Len() > 0 && out.Bytes()[out.Len()-1] != '\n' {
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}
