package wiring

import (
	"fmt"
	"os"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// issuerFile is the form of the file that says whose tokens are accepted.
type issuerFile struct {
	Issuers []struct {
		Name       string   `yaml:"name"`
		Audiences  []string `yaml:"audiences"`
		JWKSURL    string   `yaml:"jwks_url"`
		JWKSFile   string   `yaml:"jwks_file"`
		Algorithms []string `yaml:"algorithms"`
	} `yaml:"issuers"`
}

// LoadIssuers reads a YAML file of token issuers. A key that it does not know is an error.
func LoadIssuers(file string) ([]token.Issuer, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read issuers: %w", err)
	}
	var parsed issuerFile
	if err := decodeStrict(content, &parsed); err != nil {
		return nil, fmt.Errorf("read issuers: %w", err)
	}
	issuers := make([]token.Issuer, 0, len(parsed.Issuers))
	for _, i := range parsed.Issuers {
		issuers = append(issuers, token.Issuer{
			Name: i.Name, Audiences: i.Audiences, JWKSURL: i.JWKSURL, JWKSFile: i.JWKSFile, Algorithms: i.Algorithms,
		})
	}
	return issuers, nil
}
