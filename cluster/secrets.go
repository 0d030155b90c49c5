package cluster

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"

	"rackstrap/internal/plain"
)

// What kubeadm calls a token, its public half, and a certificate key. Nothing else is taken from an agent, and nothing
// else goes into a rendered file.
var (
	tokenShape   = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)
	tokenIDShape = regexp.MustCompile(`^[a-z0-9]{6}$`)
	keyShape     = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// secretShapes are what must not be seen in any text of an agent: whatever looks like a token, a certificate key (the
// hash of a CA, which looks alike, is no loss), a private key, or a client's key in a kubeconfig.
var secretShapes = regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b|\b[0-9a-f]{64}\b|` +
	`(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$))|` +
	`(?i:(client-key-data|token|password|bearer)["']?\s*[:= ]\s*["']?[A-Za-z0-9+/=._-]{16,})`)

// Redact removes what looks like a secret from the text of an agent, which should have done so itself.
func Redact(text string) string { return secretShapes.ReplaceAllString(text, "(removed)") }

// maxLine bounds an agent's text in an event, in bytes.
const maxLine = 600

// oneLine makes an agent's text fit for an event: its end, where a failure gives its reason, as a plain line, redacted.
func oneLine(text string) string { return plain.End(Redact(text), maxLine) }

// randomText makes n letters and digits, 5.17 bits each.
func randomText(n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	text := make([]byte, 0, n)
	for len(text) < n {
		var raw [32]byte
		rand.Read(raw[:])
		for _, b := range raw {
			if b < 252 && len(text) < n { // 7*36: no letter is likelier than another
				text = append(text, letters[b%36])
			}
		}
	}
	return string(text)
}

func newTokenID() string { return randomText(6) }

func newCertificateKey() string {
	var raw [32]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}

// CAHash is the pin of a cluster's CA, sha256:…, of its SubjectPublicKeyInfo (RFC 7469, section 2.4, as kubeadm does):
// computed here, whatever an agent may call it.
func CAHash(certificate string) (string, error) {
	cert, err := parseCA(certificate)
	if err != nil {
		return "", err
	}
	return hashOf(cert), nil
}

func hashOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// maxCA is some times what a certificate with the largest keys has, in bytes.
const maxCA = 16 << 10

// parseCA reads a text that is the certificate of one CA, and nothing else.
func parseCA(text string) (*x509.Certificate, error) {
	if len(text) > maxCA {
		return nil, fmt.Errorf("it has %d bytes", len(text))
	}
	block, err := oneBlock(text, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err != nil:
		return nil, err
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("the certificate is not a CA's")
	}
	return cert, nil
}
