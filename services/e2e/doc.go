// Package e2e tests Sluice as users run it: separate processes, some of which are killed, on a real Redis, MinIO and
// PostgreSQL. Tests that take minutes have the build tag long. The package contains only tests.
package e2e
