package jobstore

import (
	"crypto/x509"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Option is an option of Open.
type Option func(*settings)

type settings struct {
	redis   *redis.Options
	observe telemetry.Observer
}

// WithObserver has the observer told of each command.
func WithObserver(observe telemetry.Observer) Option {
	return func(s *settings) { s.observe = observe }
}

// WithRoots has a server behind rediss:// prove who it is by one of these root certificates; nil means the system's.
func WithRoots(roots *x509.CertPool) Option {
	return func(s *settings) {
		if s.redis.TLSConfig != nil {
			s.redis.TLSConfig.RootCAs = roots
		}
	}
}
