package config

import (
	"errors"
	"net"
	"slices"
	"strings"
)

// OperatorPage configures the operator's page on the private listener (docs/operators-page.md). The page can cancel jobs
// and has no login, so by default it is served on loopback addresses only. Client certificates are not enough, because
// scrapers have one too.
type OperatorPage struct {
	// auto (on loopback), true or false: docs/operators-page.md
	Page string `env:"OPERATOR_PAGE" envDefault:"auto"`
	// host names of the operator's page, besides localhost and addresses
	Hosts []string `env:"OPERATOR_HOSTS"`
}

// Validate returns every problem of the section.
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

// Shown reports whether a private listener at addr serves the page.
func (o OperatorPage) Shown(addr net.Addr) bool {
	if o.Page != "auto" {
		return o.Page == "true"
	}
	return Loopback(addr)
}

// Loopback reports whether addr is a loopback address.
func Loopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
