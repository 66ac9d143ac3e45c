// Package rungroup runs the components of a process together.
package rungroup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Component is a part of a process that runs until its context ends, such as a listener. Run returns nil after it was
// stopped, and an error if it cannot continue.
type Component struct {
	Name string
	Run  func(ctx context.Context) error
	// Stopping, if set, is called when the components are stopped. This component is only stopped after those without
	// Stopping have returned.
	Stopping func()
}

// Every returns a component that calls step at each interval, first after one of them, until it is stopped or step returns
// an error.
func Every(name string, interval time.Duration, step func(ctx context.Context) error) Component {
	return Component{Name: name, Run: func(ctx context.Context) error {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				if err := step(ctx); err != nil {
					return err
				}
			}
		}
	}}
}

// Run runs the components until ctx ends or one of them returns; then it stops the others. It returns the errors of all
// components after all have returned.
func Run(ctx context.Context, components ...Component) error {
	last, stopLast := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLast()
	first, stop := context.WithCancel(ctx)
	defer stop()
	var group, firsts sync.WaitGroup
	errs := make([]error, len(components))
	for i, component := range components {
		ctx := first
		if component.Stopping != nil {
			ctx = last
			group.Go(func() { <-first.Done(); component.Stopping() })
		} else {
			firsts.Add(1)
		}
		group.Go(func() {
			defer stop()
			if component.Stopping == nil {
				defer firsts.Done()
			}
			err := component.Run(ctx)
			stopped := ctx.Err() != nil && errors.Is(err, context.Canceled)
			if err != nil && !stopped {
				errs[i] = fmt.Errorf("%s: %w", component.Name, err)
			}
		})
	}
	if len(components) > 0 {
		<-first.Done()
	}
	firsts.Wait()
	stopLast()
	group.Wait()
	return errors.Join(errs...)
}
