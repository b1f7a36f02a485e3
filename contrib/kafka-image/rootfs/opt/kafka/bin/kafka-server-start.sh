#!/bin/bash
# Become the JVM that is a broker or a controller: kafka-server-start.sh server.properties
home=$(cd "$(dirname "$0")/.." && pwd)
[ -e "$home/config/log4j2.yaml" ] && logging="-Dlog4j2.configurationFile=$home/config/log4j2.yaml"
: "${logging:=-Dlog4j.configuration=file:$home/config/log4j.properties}"
export KAFKA_LOG4J_OPTS="${KAFKA_LOG4J_OPTS:-$logging}" KAFKA_HEAP_OPTS="${KAFKA_HEAP_OPTS:--Xmx1G -Xms1G}"
exec "$(dirname "$0")/kafka-run-class.sh" kafka.Kafka "$@"
