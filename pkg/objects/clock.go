package objects

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Clock returns the time of the store to the second, from the Date header of a response.
func (s *Store) Clock(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, s.client.EndpointURL().String(), nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("clock of the object store: %w", err)
	}
	answer, err := s.transport.RoundTrip(request)
	if err != nil {
		return time.Time{}, fmt.Errorf("clock of the object store: %w", failure(ctx, err))
	}
	if err := answer.Body.Close(); err != nil {
		return time.Time{}, fmt.Errorf("clock of the object store: %w", failure(ctx, err))
	}
	clock, err := http.ParseTime(answer.Header.Get("Date"))
	if err != nil {
		return time.Time{}, fmt.Errorf("clock of the object store: %w", err)
	}
	return clock.UTC(), nil
}
