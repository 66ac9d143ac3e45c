package rungroup_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/platform/rungroup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken, errClosing = errors.New("broken"), errors.New("closing failed")

// Run stops all parts when one of them returns or the context ends, and returns the errors of all, with their names.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	returns := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	stopped := func(err error) func(context.Context) error {
		return func(ctx context.Context) error { <-ctx.Done(); return err }
	}
	for name, row := range map[string]struct {
		parts []func(context.Context) error
		want  map[string]error // by the part's name
	}{
		"one fails": {
			[]func(context.Context) error{returns(errBroken), stopped(nil), stopped(errClosing), stopped(context.Canceled)},
			map[string]error{"part 0": errBroken, "part 2": errClosing},
		},
		"one returns": {[]func(context.Context) error{returns(nil), stopped(nil)}, nil},
		"the context ends": {
			[]func(context.Context) error{stopped(nil), func(context.Context) error { cancel(); return nil }}, nil,
		},
		"nothing to run": {},
		"a cancelled call of a part's own": {
			[]func(context.Context) error{returns(fmt.Errorf("call: %w", context.Canceled)), stopped(nil)},
			map[string]error{"part 0": context.Canceled},
		},
	} {
		var components []rungroup.Component
		for i, part := range row.parts {
			components = append(components, rungroup.Component{Name: fmt.Sprint("part ", i), Run: part})
		}
		within := t.Context()
		if name == "the context ends" {
			within = ctx
		}
		err := rungroup.Run(within, components...)
		if (err == nil) != (len(row.want) == 0) || err != nil && strings.Count(err.Error(), "\n") != len(row.want)-1 {
			t.Errorf("%s: %v, want %v", name, err, row.want)
		}
		for part, want := range row.want {
			if !errors.Is(err, want) || !strings.Contains(fmt.Sprint(err), part+": ") {
				t.Errorf("%s: %v, want %v of %s", name, err, want, part)
			}
		}
	}
}
