package authstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/redisclient"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Client returns the record of a client as it was put, or export.ErrNotFound. Nothing is kept in memory: a client that
// was removed is gone for the next question.
func (s *Store) Client(ctx context.Context, id string) ([]byte, error) {
	record, err := s.redis.HGet(ctx, clientsKey, id).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, fmt.Errorf("client: %w", export.ErrNotFound)
	}
	if err != nil {
		return nil, redisclient.Unavailable("read client", err)
	}
	return record, nil
}

// AddClient stores the record of a new client, or returns export.ErrConflict when there is one of that id.
func (s *Store) AddClient(ctx context.Context, id string, record []byte) error {
	added, err := s.redis.HSetNX(ctx, clientsKey, id, record).Result()
	if err != nil {
		return redisclient.Unavailable("register client", err)
	}
	if !added {
		return fmt.Errorf("register client: %w", export.ErrConflict)
	}
	return nil
}

// ReplaceClient stores the new record of a client if the one that is there is still the old, and returns
// export.ErrConflict if it is another one or gone.
func (s *Store) ReplaceClient(ctx context.Context, id string, old, record []byte) error {
	done, err := s.put.Run(ctx, s.redis, []string{clientsKey}, id, old, record).Bool()
	if err != nil && !errors.Is(err, redis.Nil) {
		return redisclient.Unavailable("change client", err)
	}
	if !done {
		return fmt.Errorf("change client: %w", export.ErrConflict)
	}
	return nil
}

// RemoveClient forgets a client, or returns export.ErrNotFound when there is none. The client gets no further token;
// those that it holds are good until they end.
func (s *Store) RemoveClient(ctx context.Context, id string) error {
	removed, err := s.redis.HDel(ctx, clientsKey, id).Result()
	if err != nil {
		return redisclient.Unavailable("remove client", err)
	}
	if removed == 0 {
		return fmt.Errorf("client: %w", export.ErrNotFound)
	}
	return nil
}

// Clients calls visit with each client until that fails. In what order is not said, and a client that is added or
// removed meanwhile may or may not be among them; each comes once.
func (s *Store) Clients(ctx context.Context, visit func(id string, record []byte) error) error {
	seen := make(map[string]bool)
	entries := s.redis.HScan(ctx, clientsKey, 0, "", 100).Iterator()
	for entries.Next(ctx) {
		id := entries.Val()
		if !entries.Next(ctx) {
			break
		}
		if seen[id] { // HSCAN may return what it has returned before
			continue
		}
		seen[id] = true
		if err := visit(id, []byte(entries.Val())); err != nil {
			return err
		}
	}
	return redisclient.Unavailable("list clients", entries.Err())
}
