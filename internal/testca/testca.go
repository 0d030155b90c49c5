// Package testca is the certificate authority of a cluster in tests, and what kubeadm makes with it.
package testca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// Pair is a certificate and its key, PEM.
type Pair struct{ Cert, Key string }

// From is when the certificates begin to be in force: before any clock of a test.
var From = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// New makes a CA like kubeadm's.
func New() Pair {
	return signed(&x509.Certificate{Subject: pkix.Name{CommonName: "kubernetes"}, NotBefore: From,
		NotAfter: time.Now().AddDate(10, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, Pair{})
}

// Admin is the client certificate of an admin.conf, signed by a CA. Each change is made to it before.
func (ca Pair) Admin(changes ...func(*x509.Certificate)) Pair {
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters"}},
		NotBefore: From, NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, change := range changes {
		change(template)
	}
	return signed(template, ca)
}

// signed makes a certificate; by itself, without a CA.
func signed(template *x509.Certificate, ca Pair) Pair {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template.SerialNumber = must(rand.Int(rand.Reader, big.NewInt(1<<62)))
	parent, signer := template, key
	if ca.Cert != "" {
		parent = must(x509.ParseCertificate(block(ca.Cert)))
		signer = must(x509.ParseECPrivateKey(block(ca.Key)))
	}
	der := must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer))
	return Pair{
		Cert: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		Key:  string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: must(x509.MarshalECPrivateKey(key))})),
	}
}

// Hash is the pin of the certificate's key, as kubeadm writes it.
func (p Pair) Hash() string {
	sum := sha256.Sum256(must(x509.ParseCertificate(block(p.Cert))).RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Kubeconfig is a file as kubeadm writes it; certificate authority and user in PEM.
func Kubeconfig(server, user, ca string, client Pair) string {
	data := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	return fmt.Sprintf(`apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: %s
    server: %s
  name: kubernetes
contexts:
- context:
    cluster: kubernetes
    user: %s
  name: %[3]s@kubernetes
current-context: %[3]s@kubernetes
kind: Config
preferences: {}
users:
- name: %[3]s
  user:
    client-certificate-data: %[4]s
    client-key-data: %[5]s
`, data(ca), server, user, data(client.Cert), data(client.Key))
}

func block(text string) []byte {
	b, _ := pem.Decode([]byte(text))
	if b == nil {
		panic("no PEM")
	}
	return b.Bytes
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
