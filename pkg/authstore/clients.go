package authstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/redisclient"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Client returns the record of a client, or export.ErrNotFound. It is not cached, so that a removal takes effect at once.
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

// AddClient stores the record of a new client, or returns export.ErrConflict if the id exists.
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

// ReplaceClient stores a new record if the current one equals old, and returns export.ErrConflict otherwise.
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

// RemoveClient deletes a client, or returns export.ErrNotFound. The client gets no more tokens; existing ones
// stay valid until they expire.
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

// Clients calls visit once for each client, in no particular order, until visit fails. A client that is added or removed
// during the call may be missing.
func (s *Store) Clients(ctx context.Context, visit func(id string, record []byte) error) error {
	seen := make(map[string]bool)
	entries := s.redis.HScan(ctx, clientsKey, 0, "", 100).Iterator()
	for entries.Next(ctx) {
		id := entries.Val()
		if !entries.Next(ctx) {
			break
		}
		if seen[id] { // HSCAN may return an entry twice
			continue
		}
		seen[id] = true
		if err := visit(id, []byte(entries.Val())); err != nil {
			return err
		}
	}
	return redisclient.Unavailable("list clients", entries.Err())
}
