package platform_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/platform"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBroken, errClosing = errors.New("broken"), errors.New("closing failed")

func untilTold(ctx context.Context) error { <-ctx.Done(); return nil }

func TestRunStopsAllWhenOneFails(t *testing.T) {
	err := platform.Run(t.Context(),
		platform.Part{Name: "first", Run: func(context.Context) error { return errBroken }},
		platform.Part{Name: "second", Run: untilTold},
		platform.Part{Name: "third", Run: func(ctx context.Context) error { <-ctx.Done(); return errClosing }},
		platform.Part{Name: "fourth", Run: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }},
	)
	if !errors.Is(err, errBroken) || !errors.Is(err, errClosing) || errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want both errors and no more", err)
	}
	for _, name := range []string{"first: ", "third: "} {
		if !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%v does not name %q", err, name)
		}
	}
}

func TestRunStopsAllWhenOneReturns(t *testing.T) {
	err := platform.Run(t.Context(),
		platform.Part{Name: "first", Run: func(context.Context) error { return nil }},
		platform.Part{Name: "second", Run: untilTold},
	)
	if err != nil {
		t.Error(err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := platform.Run(ctx,
		platform.Part{Name: "first", Run: untilTold},
		platform.Part{Name: "second", Run: func(context.Context) error { cancel(); return nil }},
	)
	if err != nil {
		t.Error(err)
	}
	if err := platform.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestRunReportsAPartThatEndsAsIfItHadBeenTold(t *testing.T) {
	err := platform.Run(t.Context(),
		platform.Part{Name: "first", Run: func(context.Context) error {
			return fmt.Errorf("a call of its own: %w", context.Canceled)
		}},
		platform.Part{Name: "second", Run: untilTold},
	)
	if !errors.Is(err, context.Canceled) || !strings.Contains(fmt.Sprint(err), "first: ") {
		t.Errorf("got %v: nobody had told the part to stop", err)
	}
}
