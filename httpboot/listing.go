package httpboot

import (
	"bytes"
	"fmt"
	"html/template"
	"io/fs"
	"net/url"
	"path"
	"strings"
	"time"

	"rackstrap/media"
)

// listing is the page of a directory. Its links are absolute paths: they hold with and without a slash at
// the end of the page's own address, which is never redirected.
var listing = template.Must(template.New("listing").Parse(`<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>{{.Path}}</title></head>
<body><h1>{{.Path}}</h1><table>
{{- if .Parent}}
<tr><td><a href="{{.Parent}}">..</a></td><td></td><td></td></tr>
{{- end}}
{{- range .Rows}}
<tr><td><a href="{{.Link}}">{{.Name}}</a></td><td align="right">{{.Size}}</td><td>{{.Time}}</td></tr>
{{- end}}
</table></body></html>
`))

type listingRow struct{ Link, Name, Size, Time string }

// renderListing lists a directory: sorted by name, directories with a slash, sizes in bytes. What a symbolic
// link leads to is listed in its place; what leads nowhere is left out.
func renderListing(tree media.Tree, prefix, dir string) ([]byte, error) {
	entries, err := fs.ReadDir(tree, dir)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	page := struct {
		Path, Parent string
		Rows         []listingRow
	}{Path: path.Join(prefix, dir) + "/"}
	if dir != "." {
		page.Parent = escape(path.Join(prefix, path.Dir(dir))) + "/"
	}
	for _, entry := range entries {
		found, err := tree.Lookup(path.Join(dir, entry.Name()))
		if err != nil || !found.IsDir() && !found.Mode.IsRegular() {
			continue
		}
		row := listingRow{Name: entry.Name(), Size: fmt.Sprint(found.Size), Link: escape(path.Join(prefix, dir, entry.Name()))}
		if found.IsDir() {
			row.Name, row.Size, row.Link = row.Name+"/", "", row.Link+"/"
		}
		if !found.ModTime.IsZero() {
			row.Time = found.ModTime.UTC().Format(time.DateTime)
		}
		page.Rows = append(page.Rows, row)
	}
	var out bytes.Buffer
	if err := listing.Execute(&out, page); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// escape escapes every element of a path for a URL.
func escape(p string) string {
	parts := strings.Split(p, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return strings.Join(parts, "/")
}
