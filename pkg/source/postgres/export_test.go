package postgres

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// Scans exports scans.
var Scans = scans

// ChooseScan reports whether a query is a scan.
func (s *Source) ChooseScan(ctx context.Context, q source.Query) (scan bool, err error) {
	types, err := s.recentSizes(ctx)
	if err != nil {
		return false, err
	}
	err = s.onConnection(ctx, func(conn *pgxpool.Conn) error {
		scan, err = s.chooseScan(ctx, conn, q, types)
		return err
	})
	return scan, err
}

// ForPatientsBy reads by a scan or by lookups.
func (s *Source) ForPatientsBy(
	ctx context.Context, scan bool, q source.Query, yield func(source.Resource) error,
) error {
	return s.onConnection(ctx, func(conn *pgxpool.Conn) error { return forPatients(ctx, conn, q, scan, yield) })
}
