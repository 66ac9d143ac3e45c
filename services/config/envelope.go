package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/envelope"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/keyring"
)

// Envelope configures the master keys, which wrap the data keys of jobs.
type Envelope struct {
	// secret; master keys, one `id:base64 of 32 bytes` per line; the first wraps, all unwrap: docs/encryption.md
	Keys string `env:"ENVELOPE_KEYS"`
}

// Validate refuses malformed keys. Without keys, new jobs are not encrypted.
func (e Envelope) Validate() error {
	_, err := e.parse()
	return err
}

func (e Envelope) parse() (*envelope.Keys, error) {
	keys, err := envelope.ParseKeys(e.Keys)
	if err != nil {
		return nil, fmt.Errorf("SLUICE_ENVELOPE_KEYS: %w", err)
	}
	return keys, nil
}

// Ring returns the keys of objects. A process without master keys also needs a ring: it must refuse encrypted jobs, not
// treat them as plaintext.
func (e Envelope) Ring(jobs *jobstore.Store) (*envelope.Ring, error) {
	keys, err := e.parse()
	if err != nil {
		return nil, err
	}
	return envelope.NewRing(keys, jobs.Key, time.Now), nil
}

// SigningKeys returns the keys that sign manifests. The master keys encrypt them, if there are any.
func (e Envelope) SigningKeys(jobs *jobstore.Store) (*keyring.Keys, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	var secrets []string
	for _, key := range strings.Fields(e.Keys) {
		_, secret, _ := strings.Cut(key, ":")
		secrets = append(secrets, secret)
	}
	return jobs.SigningKeys(secrets...)
}

// NewKey returns the function that makes a job's wrapped data key, or nil without a master key.
func (e Envelope) NewKey() (func(export.JobID, export.Owner) []byte, error) {
	keys, err := e.parse()
	if err != nil || keys.Empty() {
		return nil, err
	}
	return keys.New, nil
}
