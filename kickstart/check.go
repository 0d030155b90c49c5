package kickstart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"rackstrap/internal/shlex"
)

// Problem is something that the installer would stumble over.
type Problem struct {
	Line int // from 1; 0 for the whole text
	Text string
}

// String is the problem with its line.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.Text
	}
	return fmt.Sprintf("line %d: %s", p.Line, p.Text)
}

// Check reads a kickstart as the installer of that version does (rhel7, rhel9: the syntaxes that New found),
// and returns what is wrong with it, in the order of the lines. Shell scripts are given to `bash -n`, if bash
// is there. It never follows an %include: a target must be a file that a %pre script of the same text names.
// A Problem may quote the text.
func (r *Renderer) Check(text []byte, version string) []Problem {
	s, ok := r.syntaxes[version]
	if !ok {
		return []Problem{{0, fmt.Sprintf("there is no syntax %q", version)}}
	}
	c := &checker{syntax: s}
	c.read(text)
	c.includesExist()
	c.dracut()
	for _, sec := range c.sections {
		c.shell(sec)
	}
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return a.Line - b.Line })
	return c.problems
}

// Section is one section of a kickstart.
type Section struct {
	Name string   // with the percent sign
	Args []string // the words behind it
	Line int      // of its first line, from 1
	Body string   // without the first line and %end
}

// Interpreter is what runs the section, if it is a script.
func (s Section) Interpreter() string {
	for i, a := range s.Args {
		if v, ok := strings.CutPrefix(a, "--interpreter="); ok {
			return v
		}
		if a == "--interpreter" && i+1 < len(s.Args) {
			return s.Args[i+1]
		}
	}
	return "/bin/sh"
}

type include struct {
	line   int
	target string
}

type checker struct {
	syntax   *syntax
	problems []Problem
	sections []Section
	includes []include
	commands map[string]int // of the top level: name -> line
}

func (c *checker) problem(line int, format string, args ...any) {
	c.problems = append(c.problems, Problem{line, fmt.Sprintf(format, args...)})
}

// read divides the text as pykickstart does: sections are looked for behind leading blanks, in scripts too.
func (c *checker) read(text []byte) {
	c.commands = map[string]int{}
	if !utf8.Valid(text) {
		c.problem(0, "the text is not UTF-8")
	}
	var open *Section
	var body strings.Builder
	for i, l := range strings.Split(string(text), "\n") {
		n := i + 1
		if strings.ContainsAny(l, "\r\v\f\x1c\x1d\x1e\u0085\u2028\u2029\x00") {
			c.problem(n, "holds a character that ends a line for some readers only")
		}
		first, _, _ := strings.Cut(strings.TrimSpace(l), " ")
		first, _, _ = strings.Cut(first, "\t")
		_, isSection := c.syntax.Sections[first]
		switch {
		case first == "%end":
			if open == nil {
				c.problem(n, "%%end without a section")
				continue
			}
			open.Body = body.String()
			c.sections = append(c.sections, *open)
			open = nil
		case first == "%include":
			c.include(n, l)
		case isSection && open != nil:
			c.problem(n, "section %s of line %d is not closed with %%end", open.Name, open.Line)
			fallthrough
		case isSection:
			open = c.open(n, l)
			body.Reset()
		case open != nil:
			body.WriteString(l + "\n")
			if open.Name == "%packages" {
				c.pkg(n, l)
			}
		case first == "" || first[0] == '#':
		case first[0] == '%':
			c.problem(n, "there is no section %s in %s%s", first, c.syntax.Title, c.syntax.hint(first))
		default:
			c.command(n, l)
		}
	}
	if open != nil {
		c.problem(open.Line, "section %s is not closed with %%end", open.Name)
	}
}

// command is a line's words: at least one, if only an empty one.
func command(l string) ([]string, error) {
	words, err := shlex.Split(l)
	if err == nil && len(words) == 0 {
		words = []string{""}
	}
	return words, err
}

func (c *checker) open(n int, l string) *Section {
	words, err := command(l)
	if err != nil {
		c.problem(n, "%v", err)
		words = strings.Fields(l)
	}
	name := words[0]
	for _, fault := range c.syntax.check(name, c.syntax.Sections[name], words[1:]) {
		c.problem(n, "%s", fault)
	}
	if name == "%addon" && len(words) > 1 {
		c.addon(n, words[1], words[2:])
	}
	return &Section{Name: name, Args: words[1:], Line: n}
}

// addon checks what follows %addon: EL9 refuses a name that it does not know, EL7 overlooks it.
func (c *checker) addon(n int, name string, words []string) {
	g, known := c.syntax.Addons[name]
	if !known {
		c.problem(n, "%%addon: there is no add-on %s in %s", strconv.Quote(name), c.syntax.Title)
		return
	}
	for _, fault := range c.syntax.check(name, g, words) {
		c.problem(n, "%%addon %s", fault)
	}
}

func (c *checker) command(n int, l string) {
	words, err := command(l)
	if err != nil {
		c.problem(n, "%v", err)
		return
	}
	name := words[0]
	g, known := c.syntax.Commands[name]
	if !known {
		c.problem(n, "there is no command %s in %s%s", strconv.Quote(name), c.syntax.Title, c.syntax.hint(name))
		return
	}
	c.commands[name] = n
	c.urls(n, name, words[1:])
	for _, fault := range c.syntax.check(name, g, words[1:]) {
		c.problem(n, "%s", fault)
	}
}

// urlOptions are those whose value is a URL, by command.
var urlOptions = map[string][]string{
	"url":     {"--url", "--mirrorlist", "--metalink", "--proxy"},
	"repo":    {"--baseurl", "--mirrorlist", "--metalink", "--proxy"},
	"liveimg": {"--url", "--proxy"},
}

// urls checks what the installer would fetch from. It never quotes a URL: it may hold a password.
func (c *checker) urls(n int, name string, words []string) {
	for i, w := range words {
		option, value, joined := strings.Cut(w, "=")
		if !slices.Contains(urlOptions[name], option) {
			continue
		}
		if !joined {
			if i+1 == len(words) {
				continue // the syntax's affair
			}
			value = words[i+1]
		}
		if scheme, _, _ := strings.Cut(value, ":"); option != "--proxy" && (scheme == "file" || scheme == "ftp" || scheme == "nfs") {
			continue // the installer can do that, nobody here writes it
		}
		if option == "--proxy" && !strings.Contains(value, "://") {
			value = "http://" + value // as Anaconda takes it
		}
		if err := httpURL(value); err != nil {
			c.problem(n, "%s: %s %v", name, option, err)
		}
	}
}

var packageLine = regexp.MustCompile(`^-?(@\^?)?[A-Za-z0-9*?][A-Za-z0-9*?._+:~ /-]*( --(optional|nodefaults))?$`)

func (c *checker) pkg(n int, l string) {
	l, _, _ = strings.Cut(l, "#")
	if l = strings.TrimSpace(l); l != "" && !packageLine.MatchString(l) {
		c.problem(n, "%q is neither a package nor a group", l)
	}
}

func (c *checker) include(n int, l string) {
	words, err := shlex.Split(l)
	switch {
	case err != nil:
		c.problem(n, "%v", err)
	case len(words) != 2:
		c.problem(n, "%%include needs one file")
	case !path.IsAbs(words[1]) || path.Clean(words[1]) != words[1]:
		c.problem(n, "%%include %s: not the full path of a file", words[1])
	default:
		c.includes = append(c.includes, include{n, words[1]})
	}
}

// includesExist: what is included must have been written by %pre before.
func (c *checker) includesExist() {
	for _, inc := range c.includes {
		written := regexp.MustCompile(regexp.QuoteMeta(inc.target) + `($|[^A-Za-z0-9._/-])`)
		if !slices.ContainsFunc(c.sections, func(s Section) bool {
			return (s.Name == "%pre" || s.Name == "%pre-install") && written.MatchString(s.Body)
		}) {
			c.problem(inc.line, "%%include %s: no %%pre script writes it", inc.target)
		}
	}
}

// dracut reads the kickstart before any %pre ran: where the installer comes from and how the network is set
// up must not be in an %include.
func (c *checker) dracut() {
	sources := []string{"url", "cdrom", "harddrive", "nfs", "liveimg", "ostreesetup", "hmc"}
	if !slices.ContainsFunc(sources, func(name string) bool { return c.commands[name] > 0 }) {
		c.problem(0, "no installation source (url) at the top level, where dracut looks for it")
	}
	if c.commands["network"] == 0 {
		c.problem(0, "no network at the top level, where dracut looks for it")
	}
}

var bashLine = regexp.MustCompile(`line (\d+): `)

// shell checks a script without running it.
func (c *checker) shell(s Section) {
	if g := c.syntax.Sections[s.Name]; g == nil || !g.Script {
		return
	}
	if name := path.Base(s.Interpreter()); name != "bash" && name != "sh" {
		return
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, bash, "--norc", "--noprofile", "-n")
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdin = strings.NewReader(s.Body)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.problem(s.Line, "%s: bash could not be asked: %v", s.Name, err)
		return
	}
	for l := range strings.Lines(complaints.String()) { // an open here-document is only a warning to bash
		at := s.Line
		if m := bashLine.FindStringSubmatch(l); m != nil {
			n, _ := strconv.Atoi(m[1])
			at += n
		}
		_, text, _ := strings.Cut(strings.TrimSpace(l), ": ")
		c.problem(at, "%s: %s", s.Name, bashLine.ReplaceAllString(text, ""))
	}
	if err != nil && complaints.Len() == 0 {
		c.problem(s.Line, "%s: bash refuses the script: %v", s.Name, err)
	}
}

// Sections divides a kickstart, for those who run or examine its scripts. Sections that are not closed are
// left out.
func (r *Renderer) Sections(text []byte, version string) []Section {
	s, ok := r.syntaxes[version]
	if !ok {
		return nil
	}
	c := &checker{syntax: s}
	c.read(text)
	return c.sections
}
