package inventory

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// Script is a program that a machine runs at the end of its installation, inside of the installed system.
type Script struct {
	Name string // for the log: its file, or its place in the configuration
	Path string // of the file that Load read it from; "" if the configuration itself holds it
	Text string `json:"-"` // begins with its interpreter (#!/bin/bash); it may hold secrets, and is never shown
}

// maxScript bounds one script: it is part of a kickstart, which an installer keeps in memory.
const maxScript = 64 << 10

// parseScript reads one entry of post_scripts: the text itself, or the path of a file, which Load reads.
func parseScript(name, value string) (Script, error) {
	switch {
	case value == "":
		return Script{}, errors.New("is empty")
	case strings.HasPrefix(value, "#!"), strings.Contains(value, "\n"):
		return Script{Name: name, Text: value}, checkScript(value)
	case strings.ContainsFunc(value, unicode.IsControl), !utf8.ValidString(value):
		return Script{}, errors.New("is neither the path of a file nor a script that begins with #!/bin/bash")
	}
	return Script{Name: value, Path: value}, nil
}

// checkScript tells what is wrong with a script, without quoting it.
func checkScript(text string) error {
	switch {
	case len(text) > maxScript:
		return fmt.Errorf("is larger than %d KiB", maxScript>>10)
	case !strings.HasPrefix(text, "#!/"):
		return errors.New("has no interpreter in its first line: #!/bin/bash")
	case !utf8.ValidString(text):
		return errors.New("is not UTF-8")
	case strings.Contains(text, "\r"):
		return errors.New("has the line ends of DOS")
	case strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\t' || r == '\u2028' || r == '\u2029'
	}):
		return errors.New("holds a control character")
	}
	return nil
}

// readTexts reads the files whose content is part of the configuration: those of post_scripts, and keys of
// repositories. Each is read once, though all machines inherit it. The error is Faults.
func (c *Config) readTexts() error {
	type result struct {
		text string
		err  error
	}
	k := c.collector()
	read := map[string]result{}
	text := func(at, path string, check func(string) error) string {
		r, done := read[path]
		if !done {
			r.text, r.err = readText(path)
			if r.err == nil {
				r.err = check(r.text)
			}
			read[path] = r
		}
		if r.err != nil && (k.lines[at] != 0 || k.env[at] != "") { // else it is inherited
			k.fault(at, "%s: %v", path, r.err)
		}
		return r.text
	}
	fill := func(path string, in *Install) {
		for i := range in.PostScripts {
			if s := &in.PostScripts[i]; s.Path != "" {
				s.Text = text(entry(path+".post_scripts", i), s.Path, checkScript)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(in.Repos)) {
			if r := in.Repos[name]; keyInFile(r.GPGKey) {
				r.Key = text(path+".repos."+name+".gpgkey", r.GPGKey, checkKey)
				in.Repos[name] = r
			}
		}
	}
	fill("install", &c.Install)
	for i := range c.Machines {
		path := entry("machines", i)
		k.names[path] = c.Machines[i].Name
		fill(path, &c.Machines[i].Install)
	}
	return k.err()
}

// readText reads a small file, with the line ends of Unix where it is a key: whoever exports those has others.
func readText(path string) (string, error) {
	if err := tryRead(path, false); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxScript+1))
	if err != nil {
		return "", err
	}
	if len(raw) > maxScript {
		return "", fmt.Errorf("is larger than %d KiB", maxScript>>10)
	}
	text := string(raw)
	if strings.Contains(text, keyBegins) {
		text = strings.ReplaceAll(text, "\r\n", "\n")
	}
	return text, nil
}
