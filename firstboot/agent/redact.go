package agent

import (
	"regexp"
	"strings"
)

// What kubeadm, kubectl and journald print of secrets. A digest ("sha256:…") has the form of a certificate key and is
// none: it is matched with its prefix, and kept.
var (
	privateKeys = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\z)`)
	keyEnd      = regexp.MustCompile(`(?s)\A.*-----END [A-Z ]*PRIVATE KEY-----`) // the beginning was cut off
	fields      = regexp.MustCompile(`(?i)\b((?:client-key|client-certificate|certificate-authority)-data|token|password|passwd|secret|certificate-?key)(["']?\s*[:=]\s*["']?)[^\s"',}]+`)
	bearers     = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`)
	joinTokens  = regexp.MustCompile(`\b([a-z0-9]{6})\.[a-z0-9]{16}\b`)
	longSecrets = regexp.MustCompile(`(?i)(sha256:)?[A-Za-z0-9+/=]{60,}`) // certificate keys; keys in base64
)

const redacted = "[redacted]"

// redact takes what looks like a secret out of a text, and the known ones wherever they stand.
func redact(text string, known ...string) string {
	for _, secret := range known {
		if len(secret) >= 8 {
			text = strings.ReplaceAll(text, secret, redacted)
		}
	}
	text = privateKeys.ReplaceAllString(text, redacted)
	text = keyEnd.ReplaceAllString(text, redacted)
	text = fields.ReplaceAllString(text, "$1$2"+redacted)
	text = bearers.ReplaceAllString(text, "$1 "+redacted)
	text = joinTokens.ReplaceAllString(text, "$1."+redacted)
	return longSecrets.ReplaceAllStringFunc(text, func(found string) string {
		if strings.HasPrefix(strings.ToLower(found), "sha256:") && len(found) == len("sha256:")+64 {
			return found
		}
		return redacted
	})
}

// tail is the end of a text, at most so many bytes, from the beginning of a line if there is one.
func tail(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	text = text[len(text)-limit:]
	if at := strings.IndexByte(text, '\n'); at >= 0 && at < limit/2 {
		text = text[at+1:]
	}
	return strings.ToValidUTF8(text, "")
}
