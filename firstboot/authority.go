package firstboot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Lifetimes. Certificates begin a day before they are made: the clock of a machine that was just unpacked
// may be behind, and it checks this certificate before it has set its clock.
const (
	authorityYears = 10
	serverDays     = 397
	backdate       = 24 * time.Hour

	renewAuthority = 3 * 365 * 24 * time.Hour // before its end the CA's certificate is renewed, at a start
	renewServer    = 30 * 24 * time.Hour      // before its end the server's is, while it runs
)

// Authority is the appliance's own CA: machines pin it, so that nobody else can take their reports or hand
// them their work. Its key never leaves the data directory.
//
// Rotation: the server's certificate is made anew at every start and before its end. The CA's own certificate is renewed
// three years before its end, with the same key and name: what it signs is good under the old certificate, which the
// machines of yesterday pinned, as under the new one, which those of today are given. To change the key is to start
// afresh: remove ca.pem, and reinstall every machine whose agent is still needed, which are the control planes.
type Authority struct {
	pem  []byte
	cert *x509.Certificate
	key  crypto.Signer
}

// PEM is the CA's certificate, as the kickstart carries it.
func (a *Authority) PEM() []byte { return a.pem }

// OpenAuthority reads the CA of a data directory, or makes it at the first start. Both halves lie in one
// file, written whole or not at all: a crash leaves no certificate without its key.
func OpenAuthority(dataDir string, now time.Time) (*Authority, error) {
	path := filepath.Join(dataDir, "ca.pem")
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		if text, err = newAuthority(now); err == nil {
			err = writeAtomically(path, text)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	a, err := parseAuthority(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if now.Before(a.cert.NotAfter.Add(-renewAuthority)) {
		return a, nil
	}
	if text, err = signAuthority(a.key, now); err == nil {
		err = writeAtomically(path, text)
	}
	if err != nil {
		return nil, fmt.Errorf("renew the certificate authority: %w", err)
	}
	return parseAuthority(text)
}

func newAuthority(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // EL7's curl (NSS) knows P-256
	if err != nil {
		return nil, err
	}
	return signAuthority(key, now)
}

// signAuthority makes the CA's certificate, and puts it before its key.
func signAuthority(key crypto.Signer, now time.Time) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Rackstrap appliance CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(authorityYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}

func serial() *big.Int {
	var raw [16]byte
	rand.Read(raw[:])
	return new(big.Int).SetBytes(raw[:])
}

func parseAuthority(text []byte) (*Authority, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("no certificate with its key: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("not a certificate authority")
	}
	return &Authority{pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Leaf.Raw}), cert: pair.Leaf, key: key}, nil
}

// Certificate issues the node plane's own certificate, for the addresses by which machines reach it. It is
// made anew at every start, and lives as long as browsers' rules for certificates allow.
func (a *Authority) Certificate(now time.Time, addresses ...netip.Addr) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: "Rackstrap node plane"},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.AddDate(0, 0, serverDays),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, nil
}

// certificates has the server's certificate at hand, and makes another one before it ends.
type certificates struct {
	authority *Authority
	now       func() time.Time
	address   netip.Addr

	mu      sync.Mutex
	current *tls.Certificate
	until   time.Time
}

// get is for tls.Config.GetCertificate.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if c.current != nil && now.Before(c.until) {
		return c.current, nil
	}
	made, err := c.authority.Certificate(now, c.address)
	if err != nil {
		return nil, err
	}
	c.current, c.until = &made, now.AddDate(0, 0, serverDays).Add(-renewServer)
	return c.current, nil
}

func writeAtomically(path string, text []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
