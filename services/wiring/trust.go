package wiring

import (
	"crypto/x509"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/platform"
)

// Trust says which servers are believed to be who they say: those of the system's authorities, and of some more. Each
// section with a server has it, so that one variable counts for all of them.
type Trust struct {
	CAFile string `env:"CA_FILE"` // PEM, beside the system's root certificates
}

// Roots returns the root certificates for connections that the process makes; nil stands for the system's.
func (t Trust) Roots() (*x509.CertPool, error) {
	if t.CAFile == "" {
		return nil, nil //nolint:nilnil // as documented
	}
	roots, err := platform.Roots(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("SLUICE_CA_FILE: %w", err)
	}
	return roots, nil
}
