// Package rungroup runs the components of a process together.
package rungroup

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Component is a part of a process that runs until its context ends, such as a listener. Run returns nil after it was
// stopped, and an error if it cannot continue.
type Component struct {
	Name string
	Run  func(ctx context.Context) error
}

// Run runs the components until ctx ends or one of them returns; then it stops the others. It returns the errors of all
// components after all have returned.
func Run(ctx context.Context, components ...Component) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	errs := make([]error, len(components))
	for i, component := range components {
		group.Go(func() {
			defer stop()
			err := component.Run(ctx)
			stopped := ctx.Err() != nil && errors.Is(err, context.Canceled)
			if err != nil && !stopped {
				errs[i] = fmt.Errorf("%s: %w", component.Name, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
