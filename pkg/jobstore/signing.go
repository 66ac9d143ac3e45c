package jobstore

import (
	"time"

	"github.com/sluice-fhir/sluice/pkg/keyring"
)

const signingKey = "sluice:signing" // string: the key ring (JSON)

// The schedule of the keys that sign manifests. A key is published for far longer than an export exists, so that a copy of
// a manifest can be checked with the server for a year.
const (
	signingRotate  = 7 * 24 * time.Hour
	signingPublish = time.Hour
	signingTail    = 400 * 24 * time.Hour
)

// SigningKeys returns the keys that sign manifests. They are encrypted with the first of the secrets, each of at least 32
// bytes, and in plaintext without one. When Redis loses its data, the jobs are gone, and the next key is a new one.
func (s *Store) SigningKeys(secrets ...string) (*keyring.Keys, error) {
	return keyring.New(s.redis, keyring.Config{
		Name: signingKey, Label: "sluice api: signing keys, version 1",
		Rotate: signingRotate, Publish: signingPublish, Tail: signingTail,
		Secrets: secrets, TrustRedis: true, Now: s.now,
	})
}
