package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"

	"rackstrap/firstboot/api"
)

const (
	roleControlPlane = "control-plane"
	roleWorker       = "worker"

	// DefaultConfig is where the kickstart writes the configuration.
	DefaultConfig = "/etc/rackstrap/agent.json"
	defaultState  = "/var/lib/rackstrap"
)

// A node's name is a DNS-1123 subdomain: nothing in it can be mistaken for a flag or a path.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// ReadConfig reads and checks the file that the kickstart wrote.
func ReadConfig(path string) (api.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return api.Config{}, err
	}
	c, err := parseConfig(text)
	if err != nil {
		return api.Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func parseConfig(text []byte) (api.Config, error) {
	c := api.Config{State: defaultState}
	decode := json.NewDecoder(bytes.NewReader(text))
	decode.DisallowUnknownFields()
	if err := decode.Decode(&c); err != nil {
		return api.Config{}, err
	}
	server, err := url.Parse(c.Server)
	_, badMAC := net.ParseMAC(c.MAC)
	switch {
	case err != nil || server.Scheme != "https" || server.Host == "":
		err = errors.New("server: not an https address")
	case c.CA == "":
		err = errors.New("ca: missing: nobody else than the appliance may be believed")
	case !nodeName.MatchString(c.Name):
		err = fmt.Errorf("name: %q is no name of a node", c.Name)
	case badMAC != nil:
		err = fmt.Errorf("mac: %q is none", c.MAC)
	case c.Role != roleControlPlane && c.Role != roleWorker:
		err = fmt.Errorf("role: %q, neither control-plane nor worker", c.Role)
	case c.Attempt < 1:
		err = fmt.Errorf("attempt: %d", c.Attempt)
	case c.Token == "":
		err = errors.New("token: missing")
	case c.State == "":
		c.State = defaultState
	}
	return c, err
}
