package config

import (
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/envelope"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// Envelope is what jobs' data keys are wrapped with.
type Envelope struct {
	// secret; master keys, one `id:base64 of 32 bytes` per line; the first wraps, all unwrap: docs/encryption.md
	Keys string `env:"ENVELOPE_KEYS"`
}

// Validate refuses keys that cannot be read. None at all are allowed: then new jobs are not encrypted.
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

// Ring returns what finds the keys of objects. A process without master keys has one as well: it must not take what is
// encrypted for plaintext, nor write plaintext where the job is encrypted.
func (e Envelope) Ring(jobs *jobstore.Store) (*envelope.Ring, error) {
	keys, err := e.parse()
	if err != nil {
		return nil, err
	}
	return envelope.NewRing(keys, jobs.Key, time.Now), nil
}

// NewKey returns what makes a job's wrapped data key, nil when there is no master key.
func (e Envelope) NewKey() (func(export.JobID) []byte, error) {
	keys, err := e.parse()
	if err != nil || keys.Empty() {
		return nil, err
	}
	return keys.New, nil
}
