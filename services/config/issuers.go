package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// issuerFile is the file of the issuers whose tokens are accepted.
type issuerFile struct {
	Issuers []issuerEntry `yaml:"issuers"`
}

type issuerEntry struct {
	Name           string              `yaml:"name"`
	Audiences      []string            `yaml:"audiences"`
	JWKSURL        string              `yaml:"jwks_url"`
	JWKSFile       string              `yaml:"jwks_file"`
	Discovery      bool                `yaml:"discovery"`
	Algorithms     []string            `yaml:"algorithms"`
	SubjectClaim   string              `yaml:"subject_claim"`
	ScopeClaim     string              `yaml:"scope_claim"`
	RequiredClaims map[string]string   `yaml:"required_claims"`
	Introspection  *introspectionEntry `yaml:"introspection"`
}

type introspectionEntry struct {
	URL              string        `yaml:"url"`
	ClientID         string        `yaml:"client_id"`
	ClientSecretFile string        `yaml:"client_secret_file"`
	AudienceRequired *bool         `yaml:"audience_required"` // absent: true
	CacheFor         time.Duration `yaml:"cache_for"`
}

// LoadIssuers reads a YAML file of token issuers, and the files with secrets that it names. Unknown keys are errors. The
// error lists every problem, including those that token.NewVerifier would report.
func LoadIssuers(file string) ([]token.Issuer, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read issuers: %w", err)
	}
	var parsed issuerFile
	if err := configfile.DecodeYAML(content, &parsed); err != nil {
		return nil, fmt.Errorf("read issuers: %w", err)
	}
	issuers := make([]token.Issuer, 0, len(parsed.Issuers))
	var problems []error
	for n, i := range parsed.Issuers {
		issuer := token.Issuer{
			Name: i.Name, Audiences: i.Audiences, JWKSURL: i.JWKSURL, JWKSFile: i.JWKSFile, Discovery: i.Discovery,
			Algorithms: i.Algorithms, SubjectClaim: i.SubjectClaim, ScopeClaim: i.ScopeClaim, RequiredClaims: i.RequiredClaims,
		}
		if i.Introspection != nil {
			if issuer.Introspection, err = i.Introspection.open(); err != nil {
				problems = append(problems, fmt.Errorf("issuer %d (%q): introspection: %w", n+1, i.Name, err))
			}
		}
		issuers = append(issuers, issuer)
	}
	checked, err := token.NewVerifier(token.Config{Issuers: issuers}) // opens nothing
	if err != nil {
		problems = append(problems, err)
	} else {
		checked.Close()
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("read issuers: %w", err)
	}
	return issuers, nil
}

// open reads the secret. With an error it still returns the other settings, so that they are checked too.
func (e introspectionEntry) open() (*token.Introspection, error) {
	opened := &token.Introspection{
		URL: e.URL, ClientID: e.ClientID, CacheFor: e.CacheFor,
		AudienceOptional: e.AudienceRequired != nil && !*e.AudienceRequired,
	}
	if e.ClientSecretFile == "" {
		return opened, errors.New("client_secret_file is missing")
	}
	secret, err := os.ReadFile(e.ClientSecretFile)
	if err != nil {
		return opened, fmt.Errorf("client_secret_file: %w", err)
	}
	opened.ClientSecret = strings.TrimRight(string(secret), "\r\n")
	return opened, nil
}
