package platform

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Part is something that runs until its context ends. It returns nil when it was told to stop and an error when it
// could not go on.
type Part struct {
	Name string
	Run  func(ctx context.Context) error
}

// Run runs the parts until the context ends or one of them returns; then the others are told to stop. It returns when
// all have, with the errors of all.
func Run(ctx context.Context, parts ...Part) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	errs := make([]error, len(parts))
	for i, part := range parts {
		group.Go(func() {
			defer stop()
			err := part.Run(ctx)
			told := ctx.Err() != nil && errors.Is(err, context.Canceled)
			if err != nil && !told {
				errs[i] = fmt.Errorf("%s: %w", part.Name, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
