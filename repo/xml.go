package repo

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
)

// Bounds of what is believed of an upstream's XML. The largest primary.xml there is (a whole Fedora) has 300 MB, EPEL's 130.
const (
	maxToken    = 1 << 20 // one tag, or one text between two tags
	maxDepth    = 64
	maxUnpacked = 512 << 20
)

// tokens reads XML, tag by tag, within bounds.
type tokens struct {
	d     *xml.Decoder
	guard *guard
	depth int
	root  string // the name that the outermost element must have
	begun bool
}

func newTokens(r io.Reader, root string) *tokens {
	g := &guard{r: r}
	d := xml.NewDecoder(g)
	// Any character set but UTF-8 is refused by the decoder: createrepo writes no other.
	return &tokens{d: d, guard: g, root: root}
}

// next is the next token; io.EOF after the end of the root element, and an error if the text ends before.
func (t *tokens) next() (xml.Token, error) {
	t.guard.limit = t.d.InputOffset() + maxToken
	token, err := t.d.Token()
	if err != nil {
		if errors.Is(err, io.EOF) && !t.begun {
			err = fmt.Errorf("no <%s> in it", t.root)
		}
		return nil, err
	}
	switch tag := token.(type) {
	case xml.StartElement:
		if !t.begun && tag.Name.Local != t.root {
			return nil, fmt.Errorf("it begins with <%.40s>, not with <%s>", tag.Name.Local, t.root)
		}
		t.begun = true
		if t.depth++; t.depth > maxDepth {
			return nil, errors.New("its elements are nested too deeply")
		}
	case xml.EndElement:
		t.depth--
	case xml.Directive:
		// Entities are declared in one: no repodata has any. Comps files name their DTD, every CentOS's does.
		if t.root != "comps" || bytes.ContainsRune(tag, '[') {
			return nil, errors.New("a document type declaration is in it")
		}
	}
	return token, nil
}

// text is the text of the element that has just begun, to its end.
func (t *tokens) text() (string, error) {
	var text []byte
	for depth := t.depth; ; {
		token, err := t.next()
		if err != nil {
			return "", noEOF(err)
		}
		switch token := token.(type) {
		case xml.CharData:
			if t.depth == depth {
				if text = append(text, token...); len(text) > maxToken {
					return "", errors.New("a text in it is too long")
				}
			}
		case xml.EndElement:
			if t.depth < depth {
				return string(text), nil
			}
		}
	}
}

// skip passes over the element that has just begun.
func (t *tokens) skip() error {
	for depth := t.depth; t.depth >= depth; {
		if _, err := t.next(); err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// children calls f at the beginning of every element inside the one that has just begun. f must read it to its end.
func (t *tokens) children(f func(tag xml.StartElement) error) error {
	for depth := t.depth; ; {
		token, err := t.next()
		if err != nil {
			return noEOF(err)
		}
		switch tag := token.(type) {
		case xml.StartElement:
			if err := f(tag); err != nil {
				return err
			}
		case xml.EndElement:
			if t.depth < depth {
				return nil
			}
		}
	}
}

// document calls f for every element inside the root, and reads to the end of the text.
func (t *tokens) document(f func(tag xml.StartElement) error) error {
	for ended := false; ; {
		token, err := t.next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if text, ok := token.(xml.CharData); ok && len(bytes.TrimSpace(text)) > 0 {
			return errors.New("a text is in it outside of all elements")
		}
		if _, ok := token.(xml.StartElement); !ok {
			continue
		}
		if ended {
			return errors.New("more follows its end")
		}
		ended = true
		if err := t.children(f); err != nil {
			return err
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func attribute(tag xml.StartElement, name string) string {
	for _, a := range tag.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// guard ends a token that will not end.
type guard struct {
	r           io.Reader
	read, limit int64
}

const readAhead = 64 << 10 // more than the decoder buffers

func (g *guard) Read(p []byte) (int, error) {
	if g.read > g.limit+readAhead {
		return 0, errors.New("one tag or text in it is longer than a mebibyte")
	}
	n, err := g.r.Read(p)
	g.read += int64(n)
	return n, err
}
