// Package e2e tests Sluice as its users run it: separate processes on a real Redis and a real S3 server, asked over HTTP,
// some of them killed. It holds no code but tests.
package e2e
