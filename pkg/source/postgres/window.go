package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/source"
)

// NewPatients implements source.Source.
func (s *Source) NewPatients(context.Context, time.Time, time.Time, func(string) error) error {
	return errors.New("not yet")
}

// Deleted implements source.Source.
func (s *Source) Deleted(context.Context, source.DeletedQuery, func(source.Deletion) error) error {
	return errors.New("not yet")
}
