package syslog

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// message is what of a syslog message is of use here. The time is not: an installer's clock is whatever the board's is.
type message struct {
	severity int    // 0 emergency to 7 debug; RFC 5424, section 6.2.1
	tag      string // program: "anaconda", "packaging"; "" if it says none
	text     string
	bare     bool // it has no priority: a further line of the message before, or of nobody's
}

// noPriority is what a message without PRI has (RFC 3164, section 4.3.3: user, notice).
const noPriority = 13

// parse reads a message of RFC 5424 or RFC 3164; what is neither is text as a whole. It never fails: the only
// promise of RFC 3164 is that there is none.
func parse(line []byte) message {
	s := strings.TrimRight(string(line), "\r\n\x00")
	s = strings.TrimSuffix(s, "#000") // Python's handler ends messages with NUL, which rsyslog passes on like this
	pri, s, given := priority(s)
	m := message{severity: pri & 7, bare: !given}
	if rest, ok := strings.CutPrefix(s, "1 "); ok {
		if structured(rest, &m) {
			return m
		}
	}
	m.tag, m.text = tagged(behindStamp(s))
	return m
}

// priority takes `<13>` off.
func priority(s string) (n int, rest string, given bool) {
	end := strings.IndexByte(s, '>')
	if len(s) == 0 || s[0] != '<' || end < 2 || end > 4 {
		return noPriority, s, false
	}
	n, err := strconv.Atoi(s[1:end])
	if err != nil || n < 0 || n > 191 {
		return noPriority, s, false
	}
	return n, s[end+1:], true
}

// structured reads what follows the version in RFC 5424: TIMESTAMP HOSTNAME APP-NAME PROCID MSGID SD [MSG].
func structured(s string, m *message) bool {
	fields := strings.SplitN(s, " ", 6)
	if len(fields) < 6 {
		return false
	}
	if _, err := time.Parse(time.RFC3339Nano, fields[0]); err != nil && fields[0] != "-" {
		return false
	}
	text, ok := behindData(fields[5])
	if !ok {
		return false
	}
	if m.tag = fields[2]; m.tag == "-" {
		m.tag = ""
	}
	m.text = strings.TrimPrefix(strings.TrimPrefix(text, " "), "\ufeff") // the BOM of section 6.4
	return true
}

// behindData skips STRUCTURED-DATA: `-`, or elements in brackets whose values are quoted, with escapes.
func behindData(s string) (string, bool) {
	if s == "-" || strings.HasPrefix(s, "- ") {
		return s[1:], true
	}
	if !strings.HasPrefix(s, "[") {
		return "", false
	}
	inside, quoted := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case quoted:
			quoted = c != '"'
		case inside:
			quoted, inside = c == '"', c != ']'
		case c == '[':
			inside = true
		default:
			return s[i:], true
		}
	}
	return "", !inside && !quoted
}

// behindStamp skips `Nov 26 15:04:05 host ` of RFC 3164, or the ISO 8601 stamp that rsyslog can be told to write.
func behindStamp(s string) string {
	rest := ""
	if len(s) > len(time.Stamp) && s[len(time.Stamp)] == ' ' {
		if _, err := time.Parse(time.Stamp, s[:len(time.Stamp)]); err == nil {
			rest = s[len(time.Stamp)+1:]
		}
	}
	if rest == "" {
		stamp, behind, ok := strings.Cut(s, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); !ok || err != nil {
			return s
		}
		rest = behind
	}
	_, behind, ok := strings.Cut(rest, " ") // HOSTNAME
	if !ok {
		return rest
	}
	return behind
}

var tag = regexp.MustCompile(`^([A-Za-z0-9_./-]{1,64})(\[[0-9]{1,10}\])?:(?: |$)`)

// tagged divides `anaconda[1234]: text`.
func tagged(s string) (name, text string) {
	s = strings.TrimLeft(s, " ")
	found := tag.FindStringSubmatch(s)
	if found == nil {
		return "", s
	}
	return found[1], s[len(found[0]):]
}

// installing is how Anaconda counts packages, with yum (RHEL 7) as with dnf: `Installing bash (120/266)`.
var installing = regexp.MustCompile(`(?:^|: ?)(?:Installing|Upgrading|Reinstalling) ?:? ?([A-Za-z0-9][A-Za-z0-9._+:~-]{0,127}) \(([0-9]{1,6})/([0-9]{1,6})\)`)

// packages reads the progress of the installation of packages.
func packages(text string) (percent int, what string, ok bool) {
	found := installing.FindStringSubmatch(text)
	if found == nil {
		return 0, "", false
	}
	done, _ := strconv.Atoi(found[2])
	all, _ := strconv.Atoi(found[3])
	if all == 0 || done > all {
		return 0, "", false
	}
	return max(1, done*100/all), found[1] + " (" + found[2] + "/" + found[3] + ")", true
}
