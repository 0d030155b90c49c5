package agent

import (
	"os"
	"strings"
)

// The lines around what the agent has in /etc/issue.
const (
	issueBegin = "--- rackstrap: the operator has to confirm this machine ---\n"
	issueEnd   = "--- rackstrap confirm shows the same fingerprint, if nobody else calls in its name ---\n"
)

// ShowFingerprint has the machine's console show what the operator is to compare; "" takes it away again. Login prompts
// show it by /etc/issue: EL7's agetty (util-linux 2.23, do_prompt) knows no other file, and reads it for each prompt. EL9's
// reads it when it starts, and when /run/agetty.reload is touched, as `agetty --reload` does. A prompt of EL7 that stands
// there already does not change, so that it is also written to the console itself.
func (h *Host) ShowFingerprint(fingerprint string) {
	path := h.path("/etc/issue")
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		h.o.Log.Warn("the console's greeting cannot be read", "err", err)
		return
	}
	issue := withoutFingerprint(string(text))
	if fingerprint != "" {
		block := issueBegin + h.o.Config.Name + "  " + fingerprint + "\n" + issueEnd
		issue += block
		if console, err := os.OpenFile(h.path("/dev/console"), os.O_WRONLY, 0); err == nil {
			console.WriteString("\r\n" + strings.ReplaceAll(block, "\n", "\r\n"))
			console.Close()
		}
	}
	if issue == string(text) {
		return
	}
	if err := os.WriteFile(path, []byte(issue), 0o644); err != nil {
		h.o.Log.Warn("login prompts cannot show the fingerprint", "err", err)
	}
	now := h.o.Now()
	os.Chtimes(h.path("/run/agetty.reload"), now, now) // none: no such agetty runs
}

// withoutFingerprint is an issue file as it was.
func withoutFingerprint(issue string) string {
	before, rest, found := strings.Cut(issue, issueBegin)
	if !found {
		return issue
	}
	_, after, _ := strings.Cut(rest, issueEnd)
	return before + after
}
