// Package platform is what every process needs and no domain knows: configuration from the environment, a logger,
// HTTP listeners that drain, health answers, and a group of parts that start and stop together.
package platform
