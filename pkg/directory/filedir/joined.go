package filedir

import (
	"context"
	"errors"
	"time"
)

// Joined implements directory.Groups.
func (g *Groups) Joined(context.Context, string, time.Time, func(string) error) error {
	return errors.New("not yet")
}
