// Package plain makes texts of strangers harmless for terminals, logs and screens: a peer's words must not move a
// cursor, begin a line of their own, or read in another order than they were written.
package plain

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Line makes one line of a text, at most so many bytes of its beginning. White space, line ends included, becomes single
// blanks: a run of them could push what follows to the beginning of a terminal's line. What is no printable character
// (C0, C1 and DEL, Unicode's format and bidirectional characters, private and unassigned ones, invalid UTF-8) becomes a
// question mark, so that it is seen that something was there.
func Line(text string, most int) string {
	if !clean(text) {
		text = strings.Join(strings.Fields(printable(text, 8*most)), " ")
	}
	return first(text, most)
}

// End is Line for a text whose end matters most: a log gives its reason there.
func End(text string, most int) string {
	text = last(text, 8*most)
	if !clean(text) {
		text = strings.Join(strings.Fields(printable(text, len(text))), " ")
	}
	if len(text) <= most {
		return text
	}
	return ellipsis + last(text, most-len(ellipsis))
}

// Spaced is Line for a line of a log in a file: it keeps its blanks, a tab being one.
func Spaced(text string, most int) string {
	if clean(text) {
		return first(text, most)
	}
	return first(strings.TrimRight(printable(text, most), " "), most)
}

// Lines is Spaced for a text of several lines, such as a log, or an error that lists faults. The bound is for all of them.
func Lines(text string, most int) string {
	var kept []string
	for l := range strings.SplitSeq(first(text, most), "\n") {
		kept = append(kept, Spaced(l, most))
	}
	return strings.Join(kept, "\n")
}

// ASCII is Line for screens of firmware, which know nothing but ASCII.
func ASCII(text string, most int) string {
	return strings.Map(func(r rune) rune {
		if r > '~' {
			return '?'
		}
		return r
	}, Line(text, most))
}

const ellipsis = "…"

// first is the beginning of a text, marked where it was cut.
func first(text string, most int) string {
	if len(text) <= most {
		return text
	}
	to := max(0, most-len(ellipsis))
	for to > 0 && !utf8.RuneStart(text[to]) {
		to--
	}
	return text[:to] + ellipsis
}

// last is the end of a text, from the beginning of a character.
func last(text string, most int) string {
	from := max(0, len(text)-max(0, most))
	for from > 0 && from < len(text) && !utf8.RuneStart(text[from]) {
		from++
	}
	return text[from:]
}

// printable replaces what is not, and stops behind so many bytes: nobody's megabyte is gone through for a line of it.
func printable(text string, most int) string {
	var b strings.Builder
	for _, r := range text { // an invalid byte is U+FFFD here
		if b.Len() > most {
			break
		}
		switch {
		case unicode.IsSpace(r) || unicode.Is(unicode.Z, r):
			b.WriteByte(' ')
		case !shown(r):
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// shown tells whether a character is one that a terminal shows where it stands.
func shown(r rune) bool {
	return unicode.IsPrint(r) && r != utf8.RuneError && !unicode.In(r, unseen...)
}

// unseen are letters and marks by their category, and nothing to see.
var unseen = []*unicode.RangeTable{unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector}

// clean is the quick answer for nearly every text: printable ASCII with single blanks inside.
func clean(text string) bool {
	before := byte(' ')
	for i := range len(text) {
		c := text[i]
		if c < ' ' || c > '~' || c == ' ' && before == ' ' {
			return false
		}
		before = c
	}
	return text == "" || before != ' '
}

// JSON is a writer for JSON alone, which escapes what a terminal would obey: encoding/json leaves DEL, C1 and Unicode's
// format characters as they are.
func JSON(w io.Writer) io.Writer { return escaper{w} }

type escaper struct{ to io.Writer }

// Write implements io.Writer. Encoders write whole texts, so that no character is divided.
func (e escaper) Write(text []byte) (int, error) {
	hidden := func(r rune) bool { return r != '\n' && r != '\t' && !shown(r) }
	if !bytes.ContainsFunc(text, hidden) {
		return e.to.Write(text)
	}
	var b bytes.Buffer
	for _, r := range string(text) {
		switch {
		case !hidden(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	_, err := e.to.Write(b.Bytes())
	return len(text), err
}

// Deep makes a Line of every text inside of a value, of at most so many bytes each: it is given a pointer, to what was
// decoded just now and belongs to nobody else.
func Deep(pointer any, most int) { deep(reflect.ValueOf(pointer), most) }

func deep(v reflect.Value, most int) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			deep(v.Elem(), most)
		}
	case reflect.String:
		if v.CanSet() {
			v.SetString(Line(v.String(), most))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				deep(v.Field(i), most)
			}
		}
	case reflect.Slice, reflect.Array:
		if kind := v.Type().Elem().Kind(); kind == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			deep(v.Index(i), most)
		}
	case reflect.Map:
		deepMap(v, most)
	}
}

// deepMap replaces a map's keys and values, which cannot be changed in their places.
func deepMap(v reflect.Value, most int) {
	plain := reflect.MakeMapWithSize(v.Type(), v.Len())
	for each := v.MapRange(); each.Next(); {
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		key.Set(each.Key())
		value.Set(each.Value())
		deep(key, most)
		deep(value, most)
		plain.SetMapIndex(key, value)
	}
	if v.CanSet() && !v.IsNil() {
		v.Set(plain)
	}
}
