package config

import (
	"errors"
	"net"
	"slices"
	"strings"
)

// OperatorPage configures the operator's page (docs/operators-page.md) on the private listener. The page can cancel
// jobs and has no login, so by default it is only on loopback addresses. Client certificates are not enough: metrics
// scrapers have one too.
type OperatorPage struct {
	// auto (on loopback), true or false: docs/operators-page.md
	Page string `env:"OPERATOR_PAGE" envDefault:"auto"`
	// host names of the operator's page, besides localhost and addresses
	Hosts []string `env:"OPERATOR_HOSTS"`
}

// Validate refuses what is no choice, and what is no name.
func (o OperatorPage) Validate() error {
	var problems []error
	if !slices.Contains([]string{"auto", "true", "false"}, o.Page) {
		problems = append(problems, errors.New("SLUICE_OPERATOR_PAGE must be auto, true or false"))
	}
	for _, host := range o.Hosts {
		if host == "" || strings.ContainsAny(host, "/:@* \t") {
			problems = append(problems, errors.New("SLUICE_OPERATOR_HOSTS must be names of hosts, without scheme and port"))
			break
		}
	}
	return errors.Join(problems...)
}

// Shown decides for a private listener at the address.
func (o OperatorPage) Shown(addr net.Addr) bool {
	if o.Page != "auto" {
		return o.Page == "true"
	}
	return Loopback(addr)
}

// Loopback reports whether only this machine reaches the address.
func Loopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
