package config

import (
	"context"
	"log/slog"
	"time"
)

// retryInterval is the interval between attempts to reach a store at start.
const retryInterval = 2 * time.Second

// retry calls try until it succeeds, and logs why it has not. Services start in any order, so a store may be unavailable or
// not migrated yet. It returns the error of a context that ends before that.
func retry(ctx context.Context, log *slog.Logger, message string, try func(context.Context) error) error {
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.Warn(message, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retryInterval):
		}
	}
}
