package queue

import (
	"crypto/x509"
	"errors"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Option is an option of Open.
type Option func(*asynq.RedisClientOpt)

// WithRoots has a server behind rediss:// prove who it is by one of these root certificates; nil means the system's.
func WithRoots(roots *x509.CertPool) Option {
	return func(opt *asynq.RedisClientOpt) {
		if opt.TLSConfig != nil {
			opt.TLSConfig.RootCAs = roots
		}
	}
}

// connection reads the URL as the job store does. Asynq's own reading forgets the user's name and the default port.
func connection(url string, options ...Option) (asynq.RedisClientOpt, error) {
	parsed, err := redis.ParseURL(url)
	if err != nil {
		return asynq.RedisClientOpt{}, errors.New("the Redis URL cannot be parsed") // an error may quote the password
	}
	if parsed.TLSConfig != nil && parsed.TLSConfig.InsecureSkipVerify {
		return asynq.RedisClientOpt{}, errors.New("the Redis URL says skip_verify, which would let anybody pose as the server")
	}
	opt := asynq.RedisClientOpt{
		Network: parsed.Network, Addr: parsed.Addr, Username: parsed.Username, Password: parsed.Password, DB: parsed.DB,
		TLSConfig:   parsed.TLSConfig,
		DialTimeout: 2 * time.Second, ReadTimeout: 3 * time.Second, WriteTimeout: 3 * time.Second,
	}
	for _, option := range options {
		option(&opt)
	}
	return opt, nil
}
