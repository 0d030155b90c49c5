package kickstart

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"rackstrap/inventory"
)

// sshKeyOf is a public key of strings of these lengths behind its type.
func sshKeyOf(kind string, lengths ...int) string {
	blob := ""
	put := func(s string) { blob += string([]byte{0, 0, byte(len(s) >> 8), byte(len(s))}) + s }
	put(kind)
	for _, n := range lengths {
		put(strings.Repeat("\x7f", n))
	}
	return kind + " " + base64.StdEncoding.EncodeToString([]byte(blob))
}

// Every value that a program of the installed machine has to understand is tried against both releases.
func TestValuesOfARelease(t *testing.T) {
	const taken = ""
	hash := func(text string) func(*inventory.Install) {
		return func(in *inventory.Install) { in.RootPasswordHash = text }
	}
	key := func(text string) func(*inventory.Install) {
		return func(in *inventory.Install) { in.SSHAuthorizedKeys = []string{testLogin, text} }
	}
	zone := func(text string) func(*inventory.Install) {
		return func(in *inventory.Install) { in.Timezone = text }
	}
	proxy := func(text string) func(*inventory.Install) {
		return func(in *inventory.Install) { in.Proxy = text }
	}
	const (
		sha512   = "$6$rounds=5000$saltsaltsaltsalt$nozu4aSZ9tvfyqr8kV.PwuNYpJaa6RCOb1XRcivY.S4HEWnm/pcZbgbhIR2EeRNbUrMigQuyF/KzM9qzoEvpz0"
		sha256   = "$5$saltsalt$hcyDOxdIg0p3xyqtpHh/v8Ph.am06tQaovp1KpEklb7"
		bcrypt   = "$2b$05$abcdefghijklmnopqrstuuhKF09ZYWwH2zP/0fwE1X8e/Q1YNx/hO"
		yescrypt = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$6foLM1JhGupouWKMU70wxK61Kw9ZnecbACjJwRadqM2"
	)
	rsa2048, rsa1024 := sshKeyOf("ssh-rsa", 3, 256), sshKeyOf("ssh-rsa", 3, 128)
	for name, c := range map[string]struct {
		set          func(*inventory.Install)
		rhel7, rhel9 string // what is complained of
	}{
		"no hash":              {hash(""), taken, taken},
		"SHA-512":              {hash(sha512), taken, taken},
		"SHA-256":              {hash(sha256), taken, taken},
		"MD5":                  {hash("$1$saltsalt$4px9i58NU2Z2/vZOUlGjq."), taken, taken},
		"bcrypt":               {hash(bcrypt), "does not know bcrypt ($2b$)", taken},
		"yescrypt of mkpasswd": {hash(yescrypt), "does not know yescrypt ($y$)", taken},
		"gost-yescrypt":        {hash("$gy$j9T$F5Jx5fExrKuPp53xLKQ..1$swDwqc9roxMj9t43.TdN6v6uEgFlLv6oDhMVx4g6bhA"), "does not know yescrypt ($gy$)", taken},
		"scrypt":               {hash("$7$CU..../....saltsalt$ZAXFMcUiDtPnGZmIfHqmXcEM53OIiBgNRWjT2OlNGG4"), "does not know scrypt ($7$)", taken},
		"SHA-512, cut":         {hash(sha512[:len(sha512)-1]), "not a whole hash of sha512", "not a whole hash of sha512"},
		"SHA-512, too long":    {hash(sha512 + "x"), "not a whole hash", "not a whole hash"},
		"SHA-512, two salts":   {hash("$6$" + sha512), "not a whole hash", "not a whole hash"},
		"SHA-512, long salt":   {hash(strings.Replace(sha512, "saltsalt$", "saltsaltx$", 1)), "not a whole hash", "not a whole hash"},
		"SHA-256, few rounds":  {hash(strings.Replace(sha256, "$5$", "$5$rounds=10$", 1)), "not a whole hash", "not a whole hash"},
		"MD5, cut":             {hash("$1$saltsalt$4px9i58NU2Z2"), "not a whole hash", "not a whole hash"},
		"bcrypt, cut":          {hash(bcrypt[:40]), "does not know bcrypt", "not a whole hash of bcrypt"},
		"yescrypt, cut":        {hash(yescrypt[:60]), "does not know yescrypt", "not a whole hash of yescrypt"},
		"of LDAP":              {hash("{SSHA}AAAAAAAAAAAAAAAAAAAA"), "does not know this kind", "does not know this kind"},
		"argon2":               {hash("$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"), "does not know this kind", "does not know this kind"},

		"RSA":               {key(rsa2048 + " me"), taken, taken},
		"short RSA":         {key(rsa1024), taken, "RSA keys of 2048 bits at least: this one has 1024"},
		"ECDSA":             {key(sshKeyOf("ecdsa-sha2-nistp256", 8, 65)), taken, taken},
		"DSA":               {key(sshKeyOf("ssh-dss", 128, 20, 128, 128)), "not take a key of the type ssh-dss", "not take a key of the type ssh-dss"},
		"on hardware":       {key(sshKeyOf("sk-ssh-ed25519@openssh.com", 32, 4)), "not take a key of the type sk-ssh-ed25519", taken},
		"ECDSA on hardware": {key(sshKeyOf("sk-ecdsa-sha2-nistp256@openssh.com", 8, 65, 4)), "not take a key of the type sk-ecdsa", taken},
		"certificate":       {key("ssh-rsa-cert-v01@openssh.com AAAA"), "not take a key of the type ssh-rsa-cert", "not take"},
		"key, cut":          {key(rsa2048[:200]), "not a whole key", "not a whole key"},
		"key without end":   {key(sshKeyOf("ssh-rsa", 3)), "not a whole key", "not a whole key"},
		"key of another":    {key("ssh-ed25519 " + strings.Fields(rsa2048)[1]), "not a whole key", "not a whole key"},
		"type alone":        {key("ssh-ed25519"), "not a public key", "not a public key"},
		"a placeholder":     {key("ssh-ed25519 AAAA... you@example.org"), "not base64", "not base64"},

		"UTC":             {zone("UTC"), taken, taken},
		"Shanghai":        {zone("Asia/Shanghai"), taken, taken},
		"three parts":     {zone("America/Argentina/Ushuaia"), taken, taken},
		"offset":          {zone("Etc/GMT-8"), taken, taken},
		"2022's":          {zone("Europe/Kyiv"), "write Europe/Kiev", "write Europe/Kiev"},
		"what it was":     {zone("Europe/Kiev"), taken, taken},
		"2020's":          {zone("America/Nuuk"), "write America/Godthab", taken},
		"2016's":          {zone("Asia/Famagusta"), taken, taken},
		"lower case":      {zone("asia/shanghai"), `there is no time zone "asia/shanghai"`, "there is no time zone"},
		"misspelt":        {zone("Europe/Berln"), "there is no time zone", "there is no time zone"},
		"an abbreviation": {zone("CEST"), "there is no time zone", "there is no time zone"},

		"proxy":         {proxy("http://p.lab:3128"), taken, taken},
		"proxy by TLS":  {proxy("https://p.lab:3128"), "reaches a proxy by http only, not by https", taken},
		"without limit": {func(in *inventory.Install) {}, taken, taken},
	} {
		t.Run(name, func(t *testing.T) {
			for profile, complaint := range map[string]string{"centos-7.9": c.rhel7, "rocky-9": c.rhel9} {
				in := input(profile, "knode1")
				c.set(&in.Machine.Install)
				_, err := newRenderer(t).Render(in)
				if complaint == taken {
					require.NoError(t, err, profile)
					continue
				}
				require.ErrorContains(t, err, complaint, profile)
				if h := in.Machine.Install.RootPasswordHash; h != "" {
					require.NotContains(t, err.Error(), h[len(h)/2:], "a hash is a secret")
				}
			}
		})
	}
}

// What stands for a time zone that a release does not know is one that it knows.
func TestYoungZonesHaveOlderOnes(t *testing.T) {
	r := newRenderer(t)
	for name, s := range r.syntaxes {
		require.NotEmpty(t, s.Values.YoungZones, name)
		for young, older := range s.Values.YoungZones {
			require.True(t, s.Values.zones[young], young)
			require.NoError(t, s.Values.zone(older), "%s: %s for %s", name, older, young)
		}
	}
}
