// Package shlex reads a line as Python's shlex does, which both Anaconda's and our reading of kickstarts rest on.
package shlex

import (
	"errors"
	"strings"
)

// Split divides a line into words as shlex.split(line, comments=True) does, which reads the commands of a kickstart:
// a # begins a comment even within a word, and nothing is expanded. There is no word in a blank line or a comment.
func Split(line string) ([]string, error) {
	var (
		words  []string
		word   strings.Builder
		inWord bool
		quote  rune
		escape bool
	)
	end := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	for _, r := range line {
		switch {
		case escape:
			if quote != 0 && r != quote && r != '\\' {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escape = false
		case quote == '\'':
			if r == '\'' {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\\':
			escape, inWord = true, true
		case quote == '"':
			if r == '"' {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case r == '#':
			end()
			return words, nil
		case strings.ContainsRune(" \t\r\n", r):
			end()
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quotation mark is not closed")
	}
	if escape {
		return nil, errors.New("a backslash stands at the end of the line")
	}
	end()
	return words, nil
}
