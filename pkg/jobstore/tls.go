package jobstore

import (
	"crypto/x509"

	"github.com/redis/go-redis/v9"
)

// Option is an option of Open.
type Option func(*redis.Options)

// WithRoots has a server behind rediss:// prove who it is by one of these root certificates; nil means the system's.
func WithRoots(roots *x509.CertPool) Option {
	return func(opts *redis.Options) {
		if opts.TLSConfig != nil {
			opts.TLSConfig.RootCAs = roots
		}
	}
}
