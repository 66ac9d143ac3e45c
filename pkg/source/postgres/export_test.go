package postgres

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// The paths, for tests.
const (
	Lookups = lookups
	Scan    = scan
)

// Choose is choose.
var Choose = choose

// PathFor returns the path that a query takes.
func (s *Source) PathFor(ctx context.Context, q source.Query) (chosen path, err error) {
	types, err := s.recentSizes(ctx)
	if err != nil {
		return 0, err
	}
	err = s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		chosen, err = s.pathFor(ctx, conn, q, types)
		return err
	})
	return chosen, err
}

// ForPatientsBy reads by the path given.
func (s *Source) ForPatientsBy(
	ctx context.Context, by path, q source.Query, yield func(source.Resource) error,
) error {
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error { return forPatients(ctx, conn, q, by, yield) })
}
