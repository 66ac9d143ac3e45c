package queue

import (
	"crypto/x509"
	"errors"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
)

// Option is an option of Open.
type Option func(*settings)

type settings struct {
	redis   asynq.RedisClientOpt
	observe telemetry.Observer
}

// WithObserver has the observer told of each command of the client. What a server does to look for work is left out.
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

// connection reads the URL as the job store does. Asynq's own reading forgets the user's name and the default port.
func connection(url string, options ...Option) (settings, error) {
	parsed, err := redis.ParseURL(url)
	if err != nil {
		return settings{}, errors.New("the Redis URL cannot be parsed") // an error may quote the password
	}
	if parsed.TLSConfig != nil && parsed.TLSConfig.InsecureSkipVerify {
		return settings{}, errors.New("the Redis URL says skip_verify, which would let anybody pose as the server")
	}
	given := settings{redis: asynq.RedisClientOpt{
		Network: parsed.Network, Addr: parsed.Addr, Username: parsed.Username, Password: parsed.Password, DB: parsed.DB,
		TLSConfig:   parsed.TLSConfig,
		DialTimeout: 2 * time.Second, ReadTimeout: 3 * time.Second, WriteTimeout: 3 * time.Second,
	}}
	for _, option := range options {
		option(&given)
	}
	return given, nil
}
