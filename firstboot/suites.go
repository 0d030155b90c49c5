package firstboot

import "crypto/tls"

// suites are those of TLS 1.2 for the server's ECDSA key: authenticated encryption alone, no CBC with SHA-1. EL7's curl
// speaks TLS 1.2 by NSS, where the first of them is on by default (cipherSuites in lib/ssl/ssl3con.c of NSS 3.44); those of
// TLS 1.3, which EL9 and our agent speak, are all of this kind and cannot be chosen.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
}
