package pxe

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// interpreter runs iPXE scripts, as far as a boot server writes them: https://ipxe.org/scripting. A command that
// it does not know is an error, never skipped.
type interpreter struct {
	*booter
	kernel, initrd bool
	steps          int
}

// maxSteps ends a script that runs in circles without sleeping.
const maxSteps = 10_000

// outcome is how a script left the ordinary flow.
type outcome struct {
	jump     string // label
	chain    string // URL
	decision Decision
}

// script runs one script to its decision, or to the script that replaces it.
func (i *interpreter) script(ctx context.Context, text string) (chain string, d Decision, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) == 0 || strings.TrimSpace(lines[0]) != "#!ipxe" {
		return "", d, errors.New("script: does not begin with #!ipxe")
	}
	labels := map[string]int{}
	for n, line := range lines {
		if label, ok := strings.CutPrefix(strings.TrimSpace(line), ":"); ok {
			labels[label] = n
		}
	}
	for n := 1; n < len(lines); n++ {
		if i.steps++; i.steps > maxSteps {
			return "", d, errors.New("script: runs in circles")
		}
		out, err := i.line(ctx, strings.TrimSpace(lines[n]))
		if err != nil {
			return "", d, fmt.Errorf("script, line %d: %w", n+1, err)
		}
		switch {
		case out.decision.Action != "":
			return "", out.decision, nil
		case out.chain != "":
			return out.chain, d, nil
		case out.jump != "":
			to, ok := labels[out.jump]
			if !ok {
				return "", d, fmt.Errorf("script, line %d: no label %q", n+1, out.jump)
			}
			n = to
		}
	}
	return "", Decision{Action: LocalDisk}, nil // the script ended, and so does iPXE
}

// line runs commands that are joined by && and ||, from left to right, as iPXE does.
func (i *interpreter) line(ctx context.Context, line string) (outcome, error) {
	if line == "" || line[0] == '#' || line[0] == ':' {
		return outcome{}, nil
	}
	var failed error
	run := true
	for word := range commands(line) {
		switch word.text {
		case "":
			if word.join == "||" && failed != nil { // `command ||`: whatever came of it
				failed = nil
			}
			continue
		}
		switch word.join {
		case "&&":
			run = failed == nil
		case "||":
			run = failed != nil
		}
		if !run {
			continue
		}
		var out outcome
		out, failed = i.command(ctx, strings.Fields(word.text))
		if ctx.Err() != nil {
			return outcome{}, ctx.Err()
		}
		if unknown := new(unknownCommand); errors.As(failed, &unknown) {
			return outcome{}, failed
		}
		if failed != nil {
			i.Say("%v", failed)
		}
		if out != (outcome{}) {
			return out, nil
		}
	}
	return outcome{}, failed
}

type joined struct {
	join string // in front: "", && or ||
	text string
}

func commands(line string) func(func(joined) bool) {
	return func(yield func(joined) bool) {
		var words []string
		join := ""
		for _, w := range strings.Fields(line) {
			if w == "&&" || w == "||" {
				if !yield(joined{join, strings.Join(words, " ")}) {
					return
				}
				words, join = nil, w
				continue
			}
			words = append(words, w)
		}
		yield(joined{join, strings.Join(words, " ")})
	}
}

// unknownCommand is a script that this interpreter cannot follow.
type unknownCommand struct{ name string }

func (u *unknownCommand) Error() string { return fmt.Sprintf("command %q is not known here", u.name) }

// operands are the words that are not flags.
func operands(words []string, valued ...string) (all []string) {
	for n := 0; n < len(words); n++ {
		switch {
		case strings.HasPrefix(words[n], "--"):
			for _, v := range valued {
				if words[n] == v {
					n++
				}
			}
		default:
			all = append(all, words[n])
		}
	}
	return all
}

func (i *interpreter) command(ctx context.Context, words []string) (outcome, error) {
	name, rest := words[0], words[1:]
	switch name {
	case "echo", "imgfree":
		return outcome{}, nil
	case "dhcp":
		_, err := i.lease(ctx, ipxeStage()...)
		return outcome{}, err
	case "sleep":
		seconds := 0
		if len(rest) == 1 {
			seconds, _ = strconv.Atoi(rest[0])
		}
		select {
		case <-ctx.Done():
			return outcome{}, ctx.Err()
		case <-time.After(time.Duration(seconds) * time.Second):
			return outcome{}, nil
		}
	case "goto":
		if len(rest) != 1 {
			return outcome{}, errors.New("goto: want one label")
		}
		return outcome{jump: rest[0]}, nil
	case "iseq":
		if len(rest) != 2 {
			return outcome{}, errors.New("iseq: want two values")
		}
		if expand(rest[0]) != expand(rest[1]) {
			return outcome{}, errors.New("not equal")
		}
		return outcome{}, nil
	case "kernel":
		files := operands(rest, "--name")
		if len(files) == 0 {
			return outcome{}, errors.New("kernel: no file")
		}
		head, err := i.load(ctx, "kernel", files[0])
		if err != nil {
			return outcome{}, err
		}
		if err := checkKernel(head); err != nil {
			return outcome{}, fmt.Errorf("%s: %w", files[0], err)
		}
		i.kernel, i.args = true, strings.Join(files[1:], " ")
		return outcome{}, nil
	case "initrd":
		files := operands(rest, "--name")
		if len(files) != 1 {
			return outcome{}, errors.New("initrd: want one file")
		}
		if _, err := i.load(ctx, "initrd", files[0]); err != nil {
			return outcome{}, err
		}
		i.initrd = true
		return outcome{}, nil
	case "boot":
		if !i.kernel || !i.initrd {
			return outcome{}, errors.New("boot: no kernel and initrd are loaded")
		}
		if err := i.checkArgs(i.args); err != nil {
			return outcome{}, fmt.Errorf("boot: %w", err)
		}
		return outcome{decision: Decision{Action: Install, KernelArgs: i.args}}, nil
	case "chain":
		files := operands(rest)
		if len(files) != 1 {
			return outcome{}, errors.New("chain: want one URL")
		}
		if !strings.HasPrefix(files[0], "http://") {
			return outcome{}, fmt.Errorf("chain %s: not an HTTP URL", files[0])
		}
		return outcome{chain: files[0]}, nil
	case "exit", "sanboot":
		return outcome{decision: Decision{Action: LocalDisk}}, nil
	}
	return outcome{}, &unknownCommand{name}
}

// expand knows the settings that scripts compare.
func expand(value string) string {
	switch value {
	case "${platform}":
		return "efi"
	case "${buildarch}":
		return "x86_64"
	}
	return value
}
