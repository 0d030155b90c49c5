package lifecycle

import "crypto/subtle"

// Knows tells whether a secret is one of a machine's present attempt: its install token, while that is good, or its
// credential. What the secret may do, others decide.
func (r *Rack) Knows(name, secret string) bool {
	r.mu.RLock()
	rec := r.records[name]
	r.mu.RUnlock()
	hash := []byte(hashSecret(secret))
	known := subtle.ConstantTimeCompare(hash, []byte(rec.SecretHash)) | subtle.ConstantTimeCompare(hash, []byte(rec.Node.CredentialHash))
	return known == 1
}
