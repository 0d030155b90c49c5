package syslog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"rackstrap/internal/plain"
)

func all(t testing.TB, r io.Reader) (lines []string, cut uint64, err error) {
	t.Helper()
	f := newFrames(r)
	for {
		line, err := f.next()
		if err != nil {
			return lines, f.cut, err
		}
		require.NotEmpty(t, line)
		require.LessOrEqual(t, len(line), maxLine)
		lines = append(lines, string(line))
	}
}

// RFC 6587, both ways, also mixed.
func TestFrames(t *testing.T) {
	long := strings.Repeat("x", maxLine+100)
	for name, c := range map[string]struct {
		stream string
		want   []string
		cut    uint64
	}{
		"lines":                  {"<13>one\n<13>two\r\n\n\n<13>three", []string{"<13>one", "<13>two\r", "<13>three"}, 0},
		"NUL":                    {"<13>one\x00<13>two\x00", []string{"<13>one", "<13>two"}, 0},
		"counted":                {"7 <13>one9 <13>two\nX", []string{"<13>one", "<13>two\nX"}, 0},
		"counted, with line end": {"8 <13>one\n7 <13>two\n", []string{"<13>one\n", "<13>two"}, 0},
		"mixed":                  {"7 <13>one<13>two\n8 <13>four<13>x", []string{"<13>one", "<13>two", "<13>four", "<13>x"}, 0},
		"numbers that count not": {"12 monkeys\n1234567890123 <x\n0 <13>x\n7\n7 ", []string{"12 monkeys", "1234567890123 <x", "0 <13>x", "7", "7 "}, 0},
		"a count at the end":     {"12", []string{"12"}, 0},
		"counted, broken off":    {"20 <13>on", []string{"<13>on"}, 0},
		"a long line":            {long + "\n<13>x\n", []string{long[:maxLine], "<13>x"}, 1},
		"a long one, counted":    {fmt.Sprintf("%d <%s7 <13>one", len(long)+1, long), []string{"<" + long[:maxLine-1], "<13>one"}, 1},
		"a longer one than sent": {fmt.Sprintf("%d <%s", 2*len(long), long), []string{"<" + long[:maxLine-1]}, 1},
		"nothing":                {"", nil, 0},
		"line ends only":         {"\n\n\x00\n", nil, 0},
	} {
		for _, read := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.DataErrReader} {
			got, cut, err := all(t, read(strings.NewReader(c.stream)))
			require.ErrorIs(t, err, io.EOF, name)
			require.Equal(t, c.want, got, name)
			require.Equal(t, c.cut, cut, name)
		}
	}
	got, _, err := all(t, strings.NewReader("7 <13>one999999999 <13>two"))
	require.ErrorIs(t, err, errFraming)
	require.Equal(t, []string{"<13>one"}, got)
	_, _, err = all(t, iotest.ErrReader(errors.New("reset by peer")))
	require.ErrorContains(t, err, "reset by peer")
}

func TestParse(t *testing.T) {
	for line, want := range map[string]message{
		// What rsyslog's forwarding makes of Anaconda 21's messages.
		"<142>Nov 26 15:04:05 localhost packaging: Installing bash (120/266)":   {6, "packaging", "Installing bash (120/266)", false},
		"<143>Nov  6 15:04:05 localhost program: Running... mkfs.xfs -f /x#000": {7, "program", "Running... mkfs.xfs -f /x", false},
		"<139>Nov 26 15:04:05 kmaster anaconda[1234]: No such group: core\x00":  {3, "anaconda", "No such group: core", false},
		"<6>Nov 26 15:04:05 localhost kernel:XFS (dm-0): Mounting V5":           {6, "", "kernel:XFS (dm-0): Mounting V5", false},
		"<30>2026-11-26T15:04:05.123456+08:00 h systemd: Started x.":            {6, "systemd", "Started x.", false},
		"<13>Nov 26 15:04:05 host": {5, "", "host", false},
		"<13>hello world":          {5, "", "hello world", false},
		"<13>su: root":             {5, "su", "root", false},
		"no priority":              {5, "", "no priority", true},
		// RFC 5424, section 6.5.
		"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed":             {2, "su", "'su root' failed", false},
		`<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time`:                      {5, "myproc", "%% It's time", false},
		`<165>1 2003-10-11T22:14:15.003Z h evntslog - ID47 [a@1 iut="3" e="A\"]pp"][b@1 c="hi"] An event log`: {5, "evntslog", "An event log", false},
		`<165>1 2003-10-11T22:14:15.003Z h evntslog - ID47 [a@1 iut="3"]`:                                     {5, "evntslog", "", false},
		"<165>1 - - - - - -":           {5, "", "", false},
		"<165>1 - - - - - - only text": {5, "", "only text", false},
		// Neither.
		"<165>1 yesterday h a - - - x": {5, "", "1 yesterday h a - - - x", false},
		`<165>1 - h a - - [a b="c`:     {5, "", `1 - h a - - [a b="c`, false},
		"<999>x":                       {5, "", "<999>x", true},
		"<>x":                          {5, "", "<>x", true},
		"<-1>x":                        {5, "", "<-1>x", true},
		"<13":                          {5, "", "<13", true},
		"":                             {5, "", "", true},
	} {
		require.Equal(t, want, parse([]byte(line)), "%q", line)
	}
}

func TestPackages(t *testing.T) {
	for text, want := range map[string]string{
		"Installing bash (120/266)":                           "45 bash (120/266)",
		"Installing libgcc (1/266)":                           "1 libgcc (1/266)",
		"Installing kernel-3.10.0-1160.el7.x86_64 (266/266)":  "100 kernel-3.10.0-1160.el7.x86_64 (266/266)",
		"packaging: Installing libstdc++.x86_64 (3/300)":      "1 libstdc++.x86_64 (3/300)",
		"INFO:packaging:Upgrading glibc.i686 (50/100)":        "50 glibc.i686 (50/100)",
		"Installing : bash (120/266)":                         "45 bash (120/266)",
		"Installing bash (300/266)":                           "",
		"Installing bash (0/0)":                               "",
		"Installing (1/2)":                                    "",
		"Installing boot loader":                              "",
		"Installing $(reboot) (1/2)":                          "",
		"not Installing bash (120/266)":                       "",
		"Performing post-installation setup tasks":            "",
		"Installing x (99999999999999999999/999999999999999)": "",
	} {
		percent, what, ok := packages(text)
		require.Equal(t, want != "", ok, text)
		if ok {
			require.Equal(t, want, fmt.Sprint(percent, " ", what), text)
		}
	}
}

// FuzzStream reads any bytes as a stream, whole and piecemeal: the messages are the same, none is too long, and every
// one can be parsed.
func FuzzStream(f *testing.F) {
	for _, seed := range []string{"<13>one\n", "7 <13>one7 <13>two", "12", "7 ", "99999999 <", "\x00\n", "<34>1 2003-10-11T22:14:15.003Z h su - ID47 [a b=\"\\\"\"] x\n",
		"<142>Nov 26 15:04:05 localhost packaging: Installing bash (120/266)\n", strings.Repeat("9", 20) + " <x\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole, _, errWhole := all(t, bytes.NewReader(stream))
		bytewise, _, errBytewise := all(t, iotest.OneByteReader(bytes.NewReader(stream)))
		require.Equal(t, whole, bytewise)
		require.Equal(t, errWhole, errBytewise)
		for _, line := range whole {
			m := parse([]byte(line))
			require.True(t, m.severity >= 0 && m.severity <= 7)
			text := plain.Spaced(m.text, maxLine)
			require.True(t, utf8.ValidString(text))
			require.NotContains(t, text, "\n")
			if percent, _, ok := packages(text); ok {
				require.True(t, percent >= 1 && percent <= 100)
			}
		}
	})
}
