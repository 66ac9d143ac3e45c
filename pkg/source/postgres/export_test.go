package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// Scans exports scans.
var Scans = scans

// Path exports path.
type Path = path

// The paths.
const (
	ByPatient = byPatient
	ByRange   = byRange
	ByChange  = byChange
)

// Choose returns the path of a query.
func (s *Source) Choose(ctx context.Context, q source.Query) (by Path, err error) {
	types, err := s.recentSizes(ctx)
	if err != nil {
		return by, err
	}
	err = s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		by, err = s.choose(ctx, conn, q, types)
		return err
	})
	return by, err
}

// ForPatientsBy reads by the path.
func (s *Source) ForPatientsBy(
	ctx context.Context, by Path, q source.Query, yield func(source.Resource) error,
) error {
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error { return forPatients(ctx, conn, q, by, yield) })
}

// Plan returns the server's plan of a query, in sessions of the source.
func (s *Source) Plan(ctx context.Context, text string, args []any) (plan string, err error) {
	rows, _ := s.pool.Query(ctx, "EXPLAIN "+text, args...)
	var line string
	_, err = pgx.ForEachRow(rows, []any{&line}, func() error { plan += line + "\n"; return nil })
	return plan, err
}

// Walk exports walk.
var Walk = walk
